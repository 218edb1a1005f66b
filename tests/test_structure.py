"""Which module may import which, read from the source of the whole package."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = "mnist_cnn"
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted((ROOT / PACKAGE).rglob("*.py"))
}
BASE = {"config", "errors", "files", "plain_yaml"}
# What each room stands on: a folder, or a module at the root. Every room may use BASE, `machine` and `terminal`.
STANDS_ON: dict[str, set[str]] = {
    "network": set(),
    "data": set(),
    "inference": {"network", "data"},
    "report": {"inference", "network", "data", "export"},
    "keras": {"inference", "network", "data"},
    "export": {"inference", "network", "data"},
    "training": {"report", "inference", "network", "data", "run_folder", "processes"},
    "search": {"training", "report", "hydra_cli", "data"},
}
MAX_MODULES_IN_A_FOLDER = 10


@cache
def imports(module: str) -> frozenset[str]:
    """Dotted names that a module imports anywhere, in functions too; `from a import b` gives `a.b`.

    It gives `a` as well, unless b is a module of this package: only then does a's own content not matter.
    """
    names = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute here"
            found = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= found if found <= set(MODULES) else found | {str(node.module)}
    return frozenset(names)


def own_imports(module: str) -> set[str]:
    """The modules of this package that a module imports."""
    return {name for name in imports(module) if name in MODULES and name not in (module, PACKAGE)}


def room(module: str) -> str:
    """`data` of mnist_cnn.data.split, `cli` of mnist_cnn.cli, and an empty string for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def modules_that_import(*names: str) -> Iterator[str]:
    for module in MODULES:
        if any(found == name or found.startswith(f"{name}.") for found in imports(module) for name in names):
            yield module


def test_the_package_is_read_as_it_is() -> None:
    assert "lightning.pytorch" in imports("mnist_cnn.data.datamodule")
    assert own_imports("mnist_cnn.inference.predict") >= {"mnist_cnn.errors", "mnist_cnn.inference.pictures.prepare"}
    assert set(STANDS_ON) <= {room(module) for module in MODULES}


@pytest.mark.parametrize("name", sorted(STANDS_ON))
def test_a_room_imports_only_what_it_stands_on(name: str) -> None:
    allowed = {name, "machine", "terminal"} | BASE | STANDS_ON[name]
    for module in MODULES:
        if room(module) == name:
            used = {room(other) for other in own_imports(module)}
            assert used <= allowed, f"{module} imports {sorted(used - allowed)}"


def test_the_base_modules_import_only_each_other_and_machine_nothing() -> None:
    for name in BASE:
        used = {room(other) for other in own_imports(f"{PACKAGE}.{name}")}
        assert used <= BASE, f"{name} imports {sorted(used - BASE)}"
    assert own_imports(f"{PACKAGE}.machine") == set()


def test_no_module_imports_itself_through_others() -> None:
    try:
        TopologicalSorter({module: own_imports(module) for module in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle of imports: {' → '.join(error.args[1])}")


def test_only_training_and_the_data_module_import_lightning() -> None:
    users = set(modules_that_import("lightning", "pytorch_lightning", "lightning_fabric"))
    assert {module for module in users if room(module) != "training"} == {"mnist_cnn.data.datamodule"}


def test_only_the_hydra_command_line_and_the_run_folder_use_hydras_global_state() -> None:
    state = ("hydra.core.hydra_config", "hydra.core.global_hydra")
    assert {room(module) for module in modules_that_import(*state)} <= {"hydra_cli", "run_folder"}


def test_nothing_imports_the_entry_points() -> None:
    assert set(modules_that_import("train")) == set()
    assert set(modules_that_import("mnist_cnn.cli")) == {"mnist_cnn.__main__"}
    assert set(modules_that_import("mnist_cnn.__main__")) == set()


def test_a_folder_holds_at_most_ten_modules() -> None:
    for folder in {file.parent for file in MODULES.values()}:
        names = [file.name for file in folder.glob("*.py") if not file.name.startswith("__")]
        assert len(names) <= MAX_MODULES_IN_A_FOLDER, f"{folder.relative_to(ROOT)} holds {len(names)} modules"


def test_no_module_has_a_name_that_says_nothing() -> None:
    vague: set[str] = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not vague & {Path(file).stem for file in MODULES.values()}
