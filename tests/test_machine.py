import os
import subprocess
import sys
import time

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
    assert after_import() == ["1000", "False"]


@pytest.mark.parametrize(
    ("variable", "value", "expected"), [("GOMP_SPINCOUNT", "7", "7"), ("OMP_WAIT_POLICY", "active", "not set")]
)
def test_a_users_own_choice_of_spinning_stays(variable: str, value: str, expected: str) -> None:
    assert after_import(**{variable: value})[0] == expected


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
