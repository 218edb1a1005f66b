"""Every command of the README, run from a folder of its own on the bundled digits, for an epoch."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.conftest import ROOT, Command

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if not line.startswith("#")
]
INSTALLING = [command for command in COMMANDS if "pip install" in command]
QUICK = "trainer.max_epochs=1 trainer=cpu"


def test_the_two_install_commands_stand_first_and_are_those_that_ci_runs() -> None:
    assert COMMANDS[:2] == INSTALLING
    ci = (ROOT / ".ci" / "run").read_text()
    for command in INSTALLING:
        end = command[command.rindex("&& ") :]
        assert f"readme_command '{end}'" in ci


def test_the_other_commands_work_one_after_another(project: Path, run: Command) -> None:
    digits = load_digits()
    Image.fromarray(digits.images[7].astype("uint8") * 15).save(project / "picture.png")
    for number in range(40):
        folder = project / "my_pictures" / f"class {digits.target[number]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.images[number].astype("uint8") * 15).save(folder / f"{number}.png")
    commands = [command for command in COMMANDS if command not in INSTALLING]
    assert len(commands) == 25
    for command in commands:
        if "train.py" in command and "--help" not in command:
            epochs = QUICK.replace("max_epochs=1", "max_epochs=2") if "resume=" in command else QUICK
            command = f"{command} {epochs}" if "data=" in command else f"{command} {epochs} data=digits"
        if "search" in command:
            command = f"{command.replace('20', '2')} {QUICK} data=digits"
        status, said = run(command)
        assert status == 0, f"{command}\n{said}"
        assert said
    runs = [folder.name for folder in (project / "runs").iterdir()]
    assert len(runs) == 9
    assert (project / "my_run" / "report" / "index.html").exists()
    assert (project / "sweep" / "leaderboard.html").exists()


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)(.*?)\)", README))
def test_the_files_that_the_readme_links_are_there(link: str) -> None:
    assert (ROOT / link).exists()


ROWS = [
    row for row in json.loads((ROOT / "docs" / "recipes.json").read_text()) if not row["recipe"].startswith("keras/")
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["recipe"])
def test_the_accuracies_are_those_that_were_measured(row: dict[str, Any]) -> None:
    measured = f"{row['mean']:.2f} ± {row['std']:.2f} %"
    (line,) = [line for line in README.splitlines() if re.match(rf"\| \**`{row['recipe']}`", line)]
    assert f"{measured} ({row['n']} seeds)" in line
    assert f"{row['parameters']:,} parameters" in line
    head = (ROOT / "conf" / "experiment" / f"{row['recipe']}.yaml").read_text()
    assert measured in head
