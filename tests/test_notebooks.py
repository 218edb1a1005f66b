"""The notebooks in docs/notebooks run from top to bottom, offline, and what is printed in them is what they print."""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def notebook(file: Path) -> nbformat.NotebookNode:
    read: nbformat.NotebookNode = nbformat.read(file, 4)  # type: ignore[no-untyped-call]  # nbformat declares no types
    return read


LINKS = [
    (file, link)
    for file in NOTEBOOKS
    for cell in notebook(file).cells
    if cell.cell_type == "markdown"
    for link in re.findall(r"\]\((?!http)(.*?)\)", cell.source)
]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_every_cell_runs(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("h5py")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    executed = notebook(file)
    NotebookClient(executed, timeout=300, kernel_name="python3").execute()
    for cell in executed.cells:
        for output in cell.get("outputs", []):
            assert "error:" not in output.get("text", ""), output["text"]
    assert list(Path.cwd().glob("runs/*/report/index.html"))


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_its_results_are_shown_and_name_no_machine(file: Path) -> None:
    cells = [cell for cell in notebook(file).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell.outputs) for cell in cells) > len(cells) / 2
    assert file.stat().st_size < 700_000


@pytest.mark.parametrize(("file", "link"), LINKS, ids=lambda it: it.stem if isinstance(it, Path) else it)
def test_links_lead_to_a_file_that_is_there(file: Path, link: str) -> None:
    assert (file.parent / link.partition("#")[0]).exists()
