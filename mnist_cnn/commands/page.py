"""`mnist-cnn page`: writes an HTML file to draw on."""

import argparse
import json
from pathlib import Path

from mnist_cnn import quick_imports
from mnist_cnn.commands.arguments import add_checkpoint, add_json, add_page_output, check_output
from mnist_cnn.errors import CheckpointError, one_line, unicode_text
from mnist_cnn.terminal import print_json

DESCRIPTION = (
    "Write one HTML file to draw on: the network inside classifies while you draw. It opens in any browser, offline."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser, optional=True)
    add_page_output(parser, "page.html")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    with quick_imports():
        import torch

        from mnist_cnn.export.drawing_page import page
        from mnist_cnn.files import write_file
        from mnist_cnn.inference import checkpoint
        from mnist_cnn.inference.evaluate import logits_of

    output: Path = options.output
    check_output("-o", output, ".html", ".htm")
    file, trained = checkpoint.load_or_default(options.checkpoint)
    try:
        content = page(trained, _test_accuracy(file)).encode()
    except CheckpointError as error:
        raise CheckpointError(f"{one_line(file)}: {error}") from None
    logits_of(trained, torch.full((1, *trained.network.input_shape), 128, dtype=torch.uint8))  # raises if not finite
    write_file(output, content, replace=False)
    if options.json:
        print_json({"checkpoint": unicode_text(file), "file": unicode_text(output), "bytes": len(content)})
    else:
        print(f"{trained.model}, {trained.provenance}\nwritten to {one_line(output)} ({len(content) / 1000:,.0f} kB)")
    return 0


def _test_accuracy(file: Path) -> float | None:
    """The test accuracy according to the checkpoint's card or the metrics of its run; None if unknown."""
    from mnist_cnn.inference import box

    if card := box.card_of(file):
        return card.test_accuracy
    try:
        # They are those of the run's best checkpoint.
        accuracy = json.loads((file.parents[1] / "metrics.json").read_bytes())["test/accuracy"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    is_known = file.name == "best.ckpt" and isinstance(accuracy, float) and 0 <= accuracy <= 1
    return accuracy if is_known else None
