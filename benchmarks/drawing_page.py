"""Does the page to draw on compute what PyTorch computes, how fast, and how large is it?

    python benchmarks/drawing_page.py runs/recipes/*/0 --data-root data        a line for each network

A run folder, a checkpoint or a network in the box is put into a page, which headless Chromium opens. It answers the
first 1,000 test images of the data set. Printed are the number of images on which both name the same class, the largest
difference of a probability, the median time of an answer in the browser, and the size of the page.
"""

import argparse
import base64
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from playwright.sync_api import Browser, Page, sync_playwright
from torch import Tensor

from mnist_cnn.data.datasets import DataFiles
from mnist_cnn.export.drawing_page import page
from mnist_cnn.inference import checkpoint
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.inference.images import images_for

IMAGES = 1000
# It must not look for updates or make other requests of its own, and root can't have its sandbox.
_ARGUMENTS = (
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-gpu", "--no-sandbox",
)  # fmt: skip
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")

_ANSWER = """([images, height, width, description]) => {
    const network = loaded(description ?? JSON.parse(element("network").textContent));
    const pixels = Float32Array.from(atob(images), (character) => character.charCodeAt(0));
    const [rows, times] = [[], []];
    for (let first = 0; first < pixels.length; first += height * width) {
        const start = performance.now();
        const values = pixels.subarray(first, first + height * width);
        rows.push(Array.from(answer(network, { height, width, values }).probabilities));
        times.push(performance.now() - start);
    }
    return [rows, times];
}"""


class Answers(NamedTuple):
    """The probabilities of each image (N, classes), and the milliseconds that each image took."""

    probabilities: Tensor
    times: list[float]


def chromium() -> str | None:
    """The path of Chromium, which the environment variable CHROMIUM may name; None if there is none."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _PROGRAMS)), None)


@contextmanager
def headless() -> Iterator[Browser]:
    """Chromium without a window, for pages of ours only: it runs without its sandbox."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def page_answers(opened: Page, images: Tensor, network: dict[str, Any] | None = None) -> Answers:
    """What an open page says of images, uint8 (N, 1, H, W), by its own network or another that is described."""
    sent = base64.b64encode(images.numpy().tobytes()).decode()  # a list of numbers would take far longer
    rows, times = opened.evaluate(_ANSWER, [sent, *images.shape[2:], network])
    return Answers(torch.tensor(rows, dtype=torch.float64), times)


@torch.inference_mode()
def torch_answers(trained: TrainedNetwork, images: Tensor) -> Tensor:
    """What PyTorch says of them, (N, classes)."""
    logits: Tensor = trained.network(trained.preprocessing(images))
    return logits.double().softmax(1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="CKPT_OR_RUN")
    parser.add_argument("--data-root", default="data")
    options = parser.parse_args()
    print("network      data set     parameters    same class  max |Δp|    answer      page")
    with headless() as browser, tempfile.TemporaryDirectory() as folder:
        for name in options.networks:
            trained = checkpoint.load(name)
            file = Path(folder, "page.html")
            file.write_text(page(trained))
            opened = browser.new_page()
            opened.goto(file.as_uri())
            images = images_for(trained, "test", DataFiles(trained.dataset, options.data_root)).images[:IMAGES]
            found, expected = page_answers(opened, images), torch_answers(trained, images)
            same = int((found.probabilities.argmax(1) == expected.argmax(1)).sum())
            print(
                f"{trained.model:<12} {trained.dataset:<12} {trained.network.parameter_count:>10,} "
                f"{same:>5,} of {len(images):,} {(found.probabilities - expected).abs().max():>9.1e} "
                f"{statistics.median(found.times):>6.1f} ms {file.stat().st_size / 1000:>6,.0f} kB",
                flush=True,
            )
            opened.close()


if __name__ == "__main__":
    main()
