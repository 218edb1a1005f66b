"""How fast does a trained network answer, side by side with the same network in Keras on TensorFlow?

    python benchmarks/inference.py RUN --data-root data               a quarter of an hour on two cores
    python benchmarks/inference.py RUN --data-root data --cpu-time    the same where other work runs on these cores

RUN is the run folder of a published network. The contenders take turns in processes of their own, round after round, on
one core and on two; medians (quartiles) over the rounds. All compute 10,000 test images in float32, and scaling their
pixels is part of it. A latency is that of one image in a process that has answered before. The whole command reads
2,000 PNG files. With `--cpu-time`, seconds are processor time, of all threads together.

Needs `pip install -e '.[benchmark]'`. Keras' weights are fresh, which makes no difference to the time.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speed import ROOT, spread

BATCH = 64  # as in `mnist-cnn predict`
PICTURES = 2000
_SINGLE = 300  # answers from which a latency is taken
_Clock = Callable[[], float]


def ours(run: Path, pixels: Path, clock: _Clock) -> dict[str, float]:
    """Our figures in this process, by their names; `pixels` is a file of the test images, uint8 (N, 28, 28)."""
    import mnist_cnn  # noqa: F401, I001  # before torch: it bounds how long OpenMP's threads spin
    import numpy as np
    import torch
    from torch import Tensor

    from mnist_cnn.data.images import Images
    from mnist_cnn.inference import checkpoint
    from mnist_cnn.inference.evaluate import evaluate

    trained, images = checkpoint.load(run), torch.from_numpy(np.load(pixels))[:, None]
    test = Images(images, torch.zeros(len(images), dtype=torch.int64))  # the labels make no difference to the time

    @torch.inference_mode()
    def answer(images: Tensor) -> Tensor:
        logits: Tensor = trained.network(trained.preprocessing(images))
        return logits.softmax(1)

    batches, one = torch.split(images, BATCH), images[:1]
    return {
        "ours: evaluate, thousand images/s": rate(lambda: evaluate(trained, test, "mnist", "test"), len(test), clock),
        f"ours: batches of {BATCH}, thousand images/s": rate(
            lambda: [answer(batch) for batch in batches], len(test), clock
        ),
        **latency("ours: one image", lambda: answer(one), clock),
    }


def keras(run: Path, pixels: Path, clock: _Clock) -> dict[str, float]:
    """Those of Keras. Nothing here imports torch, which crashes beside TensorFlow."""
    os.environ.update(KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1")
    import keras  # noqa: F401  # before keras_recipes, which would choose another backend
    import numpy as np
    from keras_recipes import compiled

    network = compiled(json.loads((run / "metrics.json").read_text())["model"])
    images = np.load(pixels)[..., None]
    batches, one = [images[start : start + BATCH] for start in range(0, len(images), BATCH)], images[:1]

    def scaled(batch: Any) -> Any:
        return batch.astype("float32") / 255

    def whole() -> None:
        network.predict(scaled(images), batch_size=250, verbose=0)

    return {
        "Keras: predict, batches of 250, thousand images/s": rate(whole, len(images), clock),
        f"Keras: predict_on_batch, batches of {BATCH}, thousand images/s": rate(
            lambda: [network.predict_on_batch(scaled(batch)) for batch in batches], len(images), clock
        ),
        **latency("Keras: model(x), one image", lambda: np.asarray(network(scaled(one))), clock),
        **latency("Keras: predict_on_batch, one image", lambda: network.predict_on_batch(scaled(one)), clock),
        **latency("Keras: predict, one image", lambda: network.predict(scaled(one), verbose=0), clock),
    }


def rate(work: Callable[[], object], images: int, clock: _Clock) -> float:
    """Thousand images per second, the second time that the work is done."""
    work()
    start = clock()
    work()
    return images / (clock() - start) / 1000


def latency(name: str, answer: Callable[[], object], clock: _Clock) -> dict[str, float]:
    """Milliseconds: the median, and what 95 % of the answers don't exceed."""
    taken = []
    for _ in range(_SINGLE + 20):
        start = clock()
        answer()
        taken.append(1000 * (clock() - start))
    del taken[:20]  # these prepare what the others use
    return {f"{name}, ms": statistics.median(taken), f"{name}, 95 %, ms": statistics.quantiles(taken, n=20)[-1]}


def command(run: Path, folder: Path) -> dict[str, float]:
    """Wall and processor seconds of `mnist-cnn predict RUN FOLDER`."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    predict = [sys.executable, "-m", "mnist_cnn", "predict", str(run), str(folder)]
    subprocess.run(predict, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    name = f"`mnist-cnn predict RUN FOLDER`, {PICTURES:,} pictures"
    return {f"{name}, wall, s": wall, f"{name}, processor, s": used}


def save_images(data_root: Path, pixels: Path, folder: Path) -> None:
    """Write the test images as an array, and the first of them as PNG files into a new folder."""
    import numpy as np
    from PIL import Image

    from mnist_cnn.data import datasets

    datasets.fetch("mnist", data_root, os.environ.get("MNIST_MIRROR"))
    images = datasets.load("mnist", data_root).test.images[:, 0].numpy()
    np.save(pixels, images)
    folder.mkdir()
    for index, image in enumerate(images[:PICTURES]):
        Image.fromarray(image).save(folder / f"{index:04d}.png")


def main() -> None:
    """Measure, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--one", choices=("ours", "keras"), help="print one contender's figures as JSON, and end")
    parser.add_argument("--pixels", type=Path, help="for it: a file of test images")
    options = parser.parse_args()
    if options.one:
        clock = time.process_time if options.cpu_time else time.perf_counter
        print(json.dumps({"ours": ours, "keras": keras}[options.one](options.run, options.pixels, clock)))
        return
    found: dict[str, dict[int, list[float]]] = {}
    allowed = sorted(os.sched_getaffinity(0), reverse=True)  # the first core often does the system's work too
    if not 1 <= min(options.cores) <= max(options.cores) <= len(allowed):
        parser.error(f"--cores: this machine lets it have 1 to {len(allowed)}")
    with tempfile.TemporaryDirectory() as name:
        pixels, folder = Path(name) / "pixels.npy", Path(name) / "pictures"
        save_images(options.data_root, pixels, folder)
        for _ in range(options.rounds):
            for cores in options.cores:
                os.sched_setaffinity(0, allowed[:cores])  # the processes started here inherit it
                figures = command(options.run.resolve(), folder)
                for one in ("ours", "keras"):
                    child = [sys.executable, *sys.argv, "--one", one, "--pixels", str(pixels)]
                    said = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True).stdout
                    figures |= json.loads(said.splitlines()[-1])
                for what, value in figures.items():
                    found.setdefault(what, {}).setdefault(cores, []).append(value)
    print(f"|  | {' | '.join(f'cores: {cores}' for cores in options.cores)} |\n|---|{'---|' * len(options.cores)}")
    for what, by_cores in found.items():
        print(f"| {what} | {' | '.join(spread(values) for values in by_cores.values())} |")


if __name__ == "__main__":
    main()
