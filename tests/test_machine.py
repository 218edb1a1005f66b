import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT


def after_import(**variables: str) -> list[str]:
    """GOMP_SPINCOUNT after `import mnist_cnn` in a fresh process, and whether torch was imported by it."""
    program = (
        "import mnist_cnn, os, sys; print(os.environ.get('GOMP_SPINCOUNT', 'not set')); print('torch' in sys.modules)"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment | variables, capture_output=True, text=True, check=True
    )
    return done.stdout.split("\n")[:2]


def test_importing_the_package_bounds_spinning_before_torch_is_imported() -> None:
    assert after_import() == ["2000", "False"]


@pytest.mark.parametrize(
    ("variable", "value", "expected"), [("GOMP_SPINCOUNT", "7", "7"), ("OMP_WAIT_POLICY", "active", "not set")]
)
def test_a_users_own_choice_of_spinning_stays(variable: str, value: str, expected: str) -> None:
    assert after_import(**{variable: value})[0] == expected


@pytest.mark.parametrize(
    "command",
    [
        ["train.py", "data.name=nonsense"],
        ["train.py", "resume=nowhere"],
        ["-m", "mnist_cnn", "evaluate", "nowhere.ckpt"],
        ["-m", "mnist_cnn", "predict", "nowhere.ckpt", "x.png"],
    ],
)
def test_a_command_imports_torch_and_lightning_while_garbage_collection_is_off(
    command: list[str], tmp_path: Path
) -> None:
    watch = """
import gc, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "lightning", "torchvision", "matplotlib"):
            print(name, gc.isenabled(), file=sys.stderr)

sys.meta_path.insert(0, Watch())
"""
    (tmp_path / "sitecustomize.py").write_text(watch)  # Python imports it before the program
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode in (1, 2)  # it ends in an error, after the imports
    found = re.findall(r"^(\w+) (True|False)$", done.stderr, re.MULTILINE)
    assert "torch" in dict(found)
    assert {is_on for _, is_on in found} == {"False"}


def test_garbage_collection_is_on_after_imports_even_ones_that_fail_and_leaves_out_what_was_imported() -> None:
    program = """
import gc
from mnist_cnn import quick_imports
try:
    with quick_imports():
        import nowhere
except ImportError:
    assert gc.isenabled() and gc.get_freeze_count() == 0
with quick_imports():
    import uuid
frozen = gc.get_freeze_count()
assert gc.isenabled() and frozen > 1000
garbage = [[] for _ in range(100)]
with quick_imports():
    import uuid
assert gc.isenabled() and gc.get_freeze_count() == frozen
"""
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


def test_a_process_ends_with_the_one_that_started_it() -> None:
    child = (
        "import time; from mnist_cnn.machine import *; end_with_parent(); print('ready', flush=True); time.sleep(60)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=False)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", parent], env=environment, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        killed = time.monotonic()
        process.kill()
        assert process.stdout.read() == ""  # until the child has closed its end too
        assert time.monotonic() - killed < 30
