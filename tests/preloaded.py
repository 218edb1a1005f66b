"""Runs commands of the project one after another, in forks of one process that has imported the libraries.

Importing Lightning takes longer than the small runs of an example. A command is a line of JSON on standard input, and
its exit status is a line on standard output. No module of the project is imported before a fork, so a command may run
in another copy of the project.
"""

import json
import os
import runpy
import shlex
import sys
import traceback
from pathlib import Path

import lightning.pytorch  # noqa: F401
import matplotlib.figure  # noqa: F401
import sklearn.datasets  # noqa: F401
import torchvision.datasets  # noqa: F401


def execute(command: str, project: str, out: str, err: str) -> int:
    """Run `python train.py …` or `mnist-cnn …` in a project's folder, with its output in the files `out` and `err`."""
    for file, stream in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.chdir(project)
    sys.path.insert(0, project)
    program, *sys.argv[1:] = shlex.split(command)
    try:
        if program == "python":
            sys.argv = sys.argv[1:]
            runpy.run_path(os.path.abspath(sys.argv[0]), run_name="__main__")  # Python itself makes it absolute
        else:
            runpy.run_module({"mnist-cnn": "mnist_cnn"}[program], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.path = [path for path in sys.path if Path(path) != Path(__file__).parent]
    for line in sys.stdin:
        if child := os.fork():
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        else:
            status = execute(**json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
