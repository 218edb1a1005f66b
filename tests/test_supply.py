"""What the project is built from and checked with: dependencies, pinned versions, CI, and what SECURITY.md names."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from mnist_cnn import doctor
from tests.conftest import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {name: [Requirement(line) for line in lines] for name, lines in PROJECT["optional-dependencies"].items()}
EVERYTHING = [*NEEDED, *(it for extra in EXTRAS.values() for it in extra if it.name != "mnist-cnn")]
FULL = [*NEEDED, *EXTRAS["train"], *EXTRAS["keras"], *EXTRAS["onnx"], *EXTRAS["search"]]
PYTHONS = ["3.11", "3.12", "3.13"]
SOURCES = [*(ROOT / "mnist_cnn").rglob("*.py"), ROOT / "train.py"]

CI = (ROOT / ".ci" / "run").read_text()
WORKFLOW: dict[Any, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
NOX = (ROOT / "noxfile.py").read_text()
LINT = ["ruff check .", "ruff format --check .", "mypy"]

PINNED = (ROOT / "constraints.txt").read_text()
PIN = re.compile(r"^([\w.-]+==\S+(?: ; .+?)?)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)
PINS = [Requirement(pin) for pin, _ in PIN.findall(PINNED)]


def versions(requirement: Requirement) -> set[str]:
    """The version that a pin of constraints.txt gives."""
    return {specifier.version for specifier in requirement.specifier}


def imported() -> set[str]:
    """The top-level names that the package and train.py import from anywhere."""
    names = set[str]()
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(str(node.module))
    return names


def committed_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git repository")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_committed_file_names_a_registry_or_a_folder_of_one_machine() -> None:
    # In pieces, because this file is committed too.
    hosts = [
        "pypi" + ".org",
        "python" + "hosted",
        "download.py" + "torch",
        "npm" + "js",
        "deb." + "debian",
        "conda" + ".",
    ]
    folders = [
        "/ro" + "ot/",
        "/opt/" + "pypi",
        "/opt/" + "wheels",
        "/etc/" + "xdg",
    ]
    workplace = re.compile(rb"(?<![\w.])/(?:work)/")
    for file in committed_files():
        content = file.read_bytes()
        assert not [word for word in hosts + folders if word.encode() in content], file
        assert not workplace.search(content), file


@pytest.mark.parametrize("requirement", EVERYTHING, ids=str)
def test_every_dependency_has_a_lower_and_an_upper_bound(requirement: Requirement) -> None:
    operators = {specifier.operator for specifier in requirement.specifier}
    assert operators >= {">=", "<"}
    assert "==" not in operators


def test_versions_that_are_known_to_be_bad_are_excluded() -> None:
    bounds = {requirement.name: requirement.specifier for requirement in FULL}
    assert sorted(doctor._MALICIOUS) == [("lightning", "2.6.2"), ("lightning", "2.6.3")]
    assert not [bad for name, bad in doctor._MALICIOUS if bad in bounds[name]]
    # torch.load(weights_only=True) could run code before 2.6, and corrupt memory before 2.10.
    assert not [version for version in ("2.5.1", "2.9.1") if version in bounds["torch"]]


def test_what_is_imported_is_declared() -> None:
    declared = {canonicalize_name(requirement.name) for requirement in FULL}
    owners = packages_distributions()
    for name in {module.partition(".")[0] for module in imported()} - {"mnist_cnn"} - sys.stdlib_module_names:
        assert {canonicalize_name(owner) for owner in owners[name]} & declared, f"{name} is not in pyproject.toml"


def test_doctor_knows_every_dependency() -> None:
    names = {canonicalize_name(requirement.name) for requirement in FULL}
    assert names - {"packaging"} == set(doctor._PACKAGES)


def test_nox_and_the_workflow_run_what_ci_runs() -> None:
    job = WORKFLOW["jobs"]["ci"]
    assert job["steps"][-1] == {"run": "bash .ci/run"}
    assert 'session.run("bash", ".ci/run", external=True)' in NOX
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == LINT
    for command in LINT:
        assert command in CI.splitlines()
        words = ", ".join(f'"{word}"' for word in command.split())
        assert f"session.run({words})" in NOX


def test_all_of_them_take_the_same_pythons() -> None:
    supported = Requirement(f"python{PROJECT['requires-python']}").specifier
    assert [f"3.{minor}" for minor in range(30) if f"3.{minor}" in supported] == PYTHONS
    assert WORKFLOW["jobs"]["ci"]["strategy"]["matrix"]["python"] == PYTHONS
    assert f"python={PYTHONS}".replace("'", '"') in NOX
    assert f"Python {PYTHONS[0]} – {PYTHONS[-1]}" in (ROOT / "README.md").read_text()


def test_the_workflow_may_read_only_and_its_actions_are_pinned() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert all("permissions" not in job for job in WORKFLOW["jobs"].values())
    steps = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
    actions = [step for step in steps if "uses" in step]
    assert actions
    for action in actions:
        assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", action["uses"])
        assert "checkout" not in action["uses"] or action["with"]["persist-credentials"] is False
    assert "secrets." not in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_every_pin_has_hashes_and_nothing_else_is_in_the_file() -> None:
    rest = [line for line in PIN.sub("", PINNED).splitlines() if line and not line.lstrip().startswith("#")]
    assert rest == []
    assert len(PINS) > 50


@pytest.mark.parametrize("python", PYTHONS)
def test_on_every_python_one_pin_of_each_dependency_is_within_its_bounds(python: str) -> None:
    machine = {"python_version": python, "python_full_version": f"{python}.5", "sys_platform": "linux",
               "platform_machine": "x86_64", "platform_system": "Linux", "extra": ""}  # fmt: skip
    pins: dict[str, set[str]] = {}
    for pin in PINS:
        if pin.marker is None or pin.marker.evaluate(machine):
            assert pins.setdefault(canonicalize_name(pin.name), versions(pin)) == versions(pin), f"{pin.name} twice"
    for needed in [*FULL, *EXTRAS["dev"]]:
        if needed.name == "mnist-cnn":
            continue
        (version,) = pins[canonicalize_name(needed.name)]
        assert Version(version) in needed.specifier, needed


def test_the_pinned_file_says_how_it_is_used() -> None:
    about = ast.parse(NOX)
    (text,) = [
        node.value.value
        for node in about.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ABOUT_PINNED"
        if isinstance(node.value, ast.Constant)
    ]
    assert PINNED.startswith(str(text))
    assert "pip install --require-hashes -r constraints.txt" in PINNED


def test_nothing_in_the_package_can_listen_on_a_port() -> None:
    servers = {"socket", "socketserver", "http.server", "asyncio", "xmlrpc", "wsgiref", "multiprocessing.connection"}
    assert not {name for name in imported() if any(f"{name}.".startswith(f"{server}.") for server in servers)}


def test_the_tests_that_the_security_page_names_are_there() -> None:
    named = re.findall(r"`(test_\w+\.py)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / "tests" / name).exists()]
