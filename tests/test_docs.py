"""The examples of docs/adding.md and docs/settings.md, executed as they stand there, and the links of all pages."""

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT, Command

PAGES = [*(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md", ROOT / "CHANGELOG.md"]
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", (ROOT / "docs" / "adding.md").read_text(), re.M | re.S))


def write(block: str, project: Path) -> None:
    """Write the file that the first line of a block names, or add to it where that line says so."""
    named = re.match(r"# (\S+)( \(add .*\))?\n", block)
    assert named, f"the first line must name a file:\n{block}"
    file, is_added = project / named[1], bool(named[2])
    assert file.exists() == is_added, f"{named[1]} is either new, or is added to"
    file.write_text(f"{file.read_text()}\n\n{block}" if is_added else block)


@pytest.mark.parametrize("section", SECTIONS)
def test_an_example_works_and_its_mistake_is_answered_as_the_page_says(
    section: str, project: Path, run: Command
) -> None:
    worked, refused = 0, 0
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", SECTIONS[section], re.M | re.S):
        if language in ("python", "yaml"):
            write(block, project)
        elif language == "sh":
            for command in block.splitlines():
                status, err = run(command)
                assert status == 0, f"{command}\n{err}"
                worked += 1
        else:
            assert language == "console"
            command, *answer = block.removeprefix("$ ").splitlines()
            status, err = run(command)
            assert status == 2, f"{command}\n{err}"
            assert " ".join(answer) in err  # which is one line
            refused += 1
    assert worked
    assert refused


def test_everything_that_the_page_promises_has_an_example() -> None:
    assert list(SECTIONS) == ["An optimiser", "A network", "A layer", "A data set", "A callback"]


def test_every_command_of_the_page_on_settings_works_and_answers_as_it_says(project: Path, run: Command) -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    for name, content in re.findall(r"^`(mine/\S+)`[^\n]*:\n\n```yaml\n(.*?)^```", page, re.M | re.S):
        (project / name).parent.mkdir(parents=True)
        (project / name).write_text(content)
    commands = [
        line.partition("  #")[0]
        for block in re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S)
        for line in block.splitlines()
    ]
    examples = [
        example
        for block in re.findall(r"^```console\n\$ (.*?)^```", page, re.M | re.S)
        for example in block.split("\n$ ")
    ]
    assert (len(commands), len(examples)) == (20, 3)
    for command in commands:
        status, told = run(f"{command} data=digits trainer.max_epochs=1 trainer=cpu")
        assert status == 0, f"{command}\n{told}"
    for example in examples:
        command, _, answer = example.partition("\n")
        assert run(command) == (2 if answer.startswith("error: ") else 0, f"{answer.strip()}\n")


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_a_file_and_a_heading_that_are_there(page: Path) -> None:
    for link in re.findall(r"\]\((?!http)(.*?)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
