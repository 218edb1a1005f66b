"""Makes a page to draw on: one HTML file with a trained network inside, which classifies while the user draws."""

import base64
import hashlib
import html
import json
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from mnist_cnn.export.page_network import page_network
from mnist_cnn.inference.checkpoint import TrainedNetwork

_HERE = Path(__file__).parent
_SCRIPTS = ("page_network.js", "page_drawing.js", "page.js")


class Field(NamedTuple):
    """The parts of a drawing area, of which a page holds one: style sheet, markup and script."""

    style: str
    markup: str
    script: str


def page(trained: TrainedNetwork, accuracy: float | None = None) -> str:
    """A standalone page, identical for every call; `accuracy`, from 0 to 1, is the test accuracy, if known.

    CheckpointError, with the reason, if a page can't run the network.
    """
    network = page_network(trained)
    area = field(network)
    tested = "" if accuracy is None else f", right on {100 * accuracy:.2f} % of its test images"
    count = trained.network.parameter_count
    about = f"{trained.model}: a network of {count:,} parameters, trained on {trained.dataset}{tested}."
    return _filled(
        "page.html",
        title=title(network),
        about=html.escape(about),
        style=colours() + area.style,
        field=area.markup,
        script=area.script,
        policy=policy(area.script),
    )


def field(network: dict[str, Any]) -> Field:
    """The drawing area for a network that `page_network` describes."""
    height, width = network["input"]
    markup = _filled(
        "page_field.html",
        size=f"{width}×{height}",
        invitation=title(network),
        # Nothing in it may look like the end of the script to a browser.
        network=json.dumps(network, allow_nan=False).replace("<", "\\u003c"),
    )
    return Field(_read("page.css"), markup, "".join(_read(name) for name in _SCRIPTS))


def title(network: dict[str, Any]) -> str:
    """The heading of the drawing area."""
    return "Draw a digit" if network["placing"] == "digit" else "Draw a picture"


def colours() -> str:
    """The colours of all pages, light and dark, as CSS variables."""
    return _read("colours.css")


def policy(script: str) -> str:
    """The Content-Security-Policy of a page that loads nothing and runs only this script, or none if it is empty."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    runs = f"script-src 'sha256-{digest}'; " if script else ""
    return f"default-src 'none'; {runs}style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def _filled(name: str, **parts: str) -> str:
    return Template(_read(name)).substitute(parts)


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
