"""The checks that take an environment of their own: `pip install nox`, `nox --list`, `nox -s tests-3.12`."""

from pathlib import Path

import nox

nox.options.sessions = ["lint", "tests"]

PINNED = Path("constraints.txt")
ABOUT_PINNED = """\
# Every package that pip install -e '.[dev]' needs, at one version, with the hashes of its files. To install just these:
#     pip install --require-hashes -r constraints.txt && pip install --no-deps -e .
# To make this file after a change in pyproject.toml: nox -s pin. With the newest versions: nox -s pin -- --upgrade
"""


@nox.session(python=["3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    """All that CI does, with the newest versions: install in a fresh copy, train, test, lint."""
    session.run("bash", ".ci/run", external=True)


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """The tests with the lowest versions that pyproject.toml allows."""
    session.install("uv")
    session.run("uv", "pip", "install", "--resolution", "lowest-direct", "-e", ".[dev]")
    session.run("pytest", "--no-cov", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and types; mypy reads the types of the installed packages."""
    session.install("-e", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session
def audit(session: nox.Session) -> None:
    """Look for known vulnerabilities in the pinned versions; fails where it can't ask."""
    session.install("pip-audit")
    session.run("pip-audit", "--strict", "--disable-pip", "--require-hashes", "-r", str(PINNED))


@nox.session
def pin(session: nox.Session) -> None:
    """Write constraints.txt anew; versions stay as they are unless --upgrade is given."""
    session.install("uv")
    command = (
        "uv pip compile pyproject.toml --extra dev --extra keras --universal --python-version 3.11 --generate-hashes"
    )
    session.run(*command.split(), "--quiet", "--no-header", "-o", str(PINNED), *session.posargs)
    PINNED.write_text(ABOUT_PINNED + PINNED.read_text())
