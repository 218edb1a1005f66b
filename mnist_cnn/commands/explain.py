"""`mnist-cnn explain`: writes a page about how a network reads a picture."""

import argparse

from mnist_cnn import quick_imports
from mnist_cnn.commands.arguments import add_checkpoint, add_page_output, add_placing, check_output
from mnist_cnn.errors import ConfigError, one_line

DESCRIPTION = (
    "Write one HTML page about how a network reads a picture: how the picture is prepared, the answer, which pixels "
    "would change it, the feature maps of every layer, and the filters of the first."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser, optional=True)
    parser.add_argument("picture", metavar="PICTURE", help="a picture, or - for one on standard input")
    add_page_output(parser, "explain.html")
    add_placing(parser)


def run(options: argparse.Namespace) -> int:
    with quick_imports():
        from mnist_cnn.files import write_file
        from mnist_cnn.inference import checkpoint
        from mnist_cnn.report.explain.page import explain

    check_output("-o", options.output, ".html", ".htm")
    if not options.picture:
        raise ConfigError("the name of the picture is empty.")
    if options.checkpoint is None and checkpoint.is_meant(options.picture):
        raise ConfigError(f"no picture given: mnist-cnn explain {one_line(options.picture)} PICTURE")
    _, trained = checkpoint.load_or_default(options.checkpoint)
    explained = explain(trained, options.picture, options.placing)
    # The name of a picture need not be Unicode.
    write_file(options.output, explained.page.encode("utf-8", "backslashreplace"), replace=False)
    print(f"{explained.answer}\nwritten to {one_line(options.output)}")
    return 0
