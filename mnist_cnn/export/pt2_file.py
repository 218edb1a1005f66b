"""Exports a network as a `.pt2` file: torch's own exported program, which needs torch but none of this package.

torch.export.load unpickles what such a file asks it to, so a stranger's file can run any code. Ours is read here only
right after it was written, from memory.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mnist_cnn.data.sources import Array
from mnist_cnn.export import card
from mnist_cnn.export.check import Check, Reference, Runtime, compare, require_equal
from mnist_cnn.export.program import converted, quiet
from mnist_cnn.files import check_is_new, write_file
from mnist_cnn.inference.checkpoint import TrainedNetwork

CARD = "card.json"  # the name of the model card among the file's extra files


def export_pt2(trained: TrainedNetwork, path: Path, reference: Reference, facts: Mapping[str, str]) -> Check:
    """Write a `.pt2` file that gave PyTorch's answers, with `facts` in it.

    UserError if it gives others or a layer can't be exported, OutputError if the file exists or can't be written.
    """
    check_is_new(path)
    program = converted(trained, lambda program: program)
    check = require_equal(compare(_answers(_saved(program, {})), reference), "torch.export")
    about = {**facts, **card.measured(check, {"check": check.to_dict()})}
    write_file(path, _saved(program, {CARD: json.dumps(about, ensure_ascii=False)}), replace=False)
    return check


def _saved(program: torch.export.ExportedProgram, extra: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer, extra_files=extra)
    return buffer.getvalue()


def _answers(content: bytes) -> Runtime:
    with quiet():
        network = torch.export.load(io.BytesIO(content)).module()

    @torch.inference_mode()
    def answers(images: Array) -> Array:
        found: Array = network(torch.from_numpy(images)).numpy()
        return found

    return answers
