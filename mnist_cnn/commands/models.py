"""`mnist-cnn models`: lists and describes the networks in the box."""

import argparse

from mnist_cnn.commands.arguments import add_json
from mnist_cnn.terminal import print_json

DESCRIPTION = "List the trained networks that come with this package, or describe one."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="the network to describe: print its model card")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    from mnist_cnn.inference import box

    if options.name is not None:
        card = box.card(options.name)
        if options.json:
            print_json(card.to_dict())
        else:
            print(box.text(options.name))
    elif options.json:
        print_json({name: box.card(name).to_dict() for name in box.names()})
    else:
        print(box.table())
    return 0
