"""How fast does an exported network answer on one core: ONNX Runtime, in float32 and in 8 bits, PyTorch, and Keras?

    python benchmarks/serving.py --data-root data                           about half an hour
    python benchmarks/serving.py RUN tiny_strong --data-root data --rounds 3
    python benchmarks/serving.py --data-root data --cpu-time                where other work runs on this core

Without networks named, `tiny_strong`, `strong` and `accurate` of the box, the first two of which have the layers of
`tiny` and `baseline`. Each network is exported with `mnist-cnn export`: to ONNX, to ONNX in 8 bits, and to Keras, which
runs it on TensorFlow; PyTorch runs the checkpoint, as `mnist-cnn predict` does. The four take turns in processes of
their own, round after round, on one core. All begin with the 10,000 test images in uint8 and end with probabilities.
Medians (quartiles) over the rounds; a ratio is the median of the ratios in each round.

Needs `pip install -e '.[benchmark,onnx,keras]'`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from inference import latency, rate
from speed import spread

BATCH = 250
RATE, ONE, ONE_95 = "thousand images/s", "one image, ms", "one image, 95 %, ms"
BASE = "PyTorch"  # what the others are compared with


def pytorch(folder: Path) -> Callable[[Any], Any]:
    """Our network, as `mnist-cnn predict` and `evaluate` call it."""
    import mnist_cnn  # noqa: F401, I001  # before torch: it bounds how long OpenMP's threads spin
    import torch

    from mnist_cnn.inference import checkpoint

    trained = checkpoint.load(folder / "checkpoint")

    @torch.inference_mode()
    def answer(images: Any) -> Any:
        return trained.network(trained.preprocessing(torch.from_numpy(images)[:, None])).softmax(1).numpy()

    return answer


def onnx(file: str) -> Callable[[Path], Callable[[Any], Any]]:
    """A file in ONNX Runtime."""

    def load(folder: Path) -> Callable[[Any], Any]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(folder / file, options)
        return lambda images: session.run(None, {"images": images})[0]

    return load


def keras(folder: Path) -> Callable[[Any], Any]:
    """Keras on TensorFlow: `predict` for all images, and for one `predict_on_batch`, which is faster."""
    os.environ.update(KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1")
    import keras

    model = keras.models.load_model(folder / "model.keras")
    scale = json.loads((folder / "scale.json").read_text())

    def answer(images: Any) -> Any:
        scaled = (images[..., None].astype("float32") / scale["scale"] - scale["mean"]) / scale["std"]
        if len(images) == 1:
            return model.predict_on_batch(scaled)
        return model.predict(scaled, batch_size=BATCH, verbose=0)

    return answer


CONTENDERS: dict[str, Callable[[Path], Callable[[Any], Any]]] = {
    "ONNX Runtime": onnx("model.onnx"),
    "ONNX Runtime, 8 bits": onnx("model-int8.onnx"),
    BASE: pytorch,
    "Keras": keras,
}


def measure(contender: str, folder: Path, clock: Callable[[], float]) -> dict[str, float]:
    """The figures of one contender in this process."""
    import numpy as np

    images = np.load(folder / "images.npy")
    answer = CONTENDERS[contender](folder)
    # Keras cuts its batches itself.
    batches = [images] if contender == "Keras" else [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    middle, most = latency("", lambda: answer(images[:1]), clock).values()
    per_second = rate(lambda: [answer(batch) for batch in batches], len(images), clock)
    return {RATE: per_second, ONE: middle, ONE_95: most}


def prepare(network: str, folder: Path, data_root: Path) -> None:
    """Export a network into a folder, with the test images beside it."""
    import numpy as np

    from mnist_cnn.data import datasets
    from mnist_cnn.inference import checkpoint

    file, trained = checkpoint.load_kept(network)
    (folder / "checkpoint").symlink_to(file.resolve())
    scale = trained.preprocessing
    (folder / "scale.json").write_text(json.dumps({"scale": scale.scale, "mean": scale.mean, "std": scale.std}))
    datasets.fetch("mnist", data_root, os.environ.get("MNIST_MIRROR"))
    np.save(folder / "images.npy", datasets.load("mnist", data_root).test.images[:, 0].numpy())
    for name, options in {
        "model.onnx": ["onnx"],
        "model-int8.onnx": ["onnx", "--int8"],
        "model.keras": ["keras"],
    }.items():
        export = [sys.executable, "-m", "mnist_cnn", "export", network, "-o", str(folder / name)]
        export += ["--data-root", str(data_root), "--format", *options]
        subprocess.run(export, check=True, stdout=subprocess.DEVNULL)


def table(found: Mapping[str, Mapping[str, list[dict[str, float]]]]) -> str:
    """A row for each network and contender."""
    rows = [
        f"| network | contender | {RATE} | times {BASE} | {ONE} | 95 % | {BASE}'s time / it |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for network, contenders in found.items():
        base = contenders[BASE]
        for name, rounds in contenders.items():
            faster = statistics.median(one[RATE] / its[RATE] for one, its in zip(rounds, base, strict=True))
            sooner = statistics.median(its[ONE] / one[ONE] for one, its in zip(rounds, base, strict=True))
            rates, ones = spread([one[RATE] for one in rounds]), spread([one[ONE] for one in rounds])
            most = statistics.median(one[ONE_95] for one in rounds)
            rows.append(f"| `{network}` | {name} | {rates} | {faster:.2f} | {ones} | {most:.2f} | {sooner:.2f} |")
    return "\n".join(rows)


def main() -> None:
    """Measure, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["tiny_strong", "strong", "accurate"])
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="seconds of the processor, not of the clock")
    parser.add_argument("--one", choices=tuple(CONTENDERS), help="print one contender's figures as JSON, and end")
    parser.add_argument("--folder", type=Path, help="for it: what was prepared")
    options = parser.parse_args()
    if options.one:
        clock = time.process_time if options.cpu_time else time.perf_counter
        print(json.dumps(measure(options.one, options.folder, clock)))
        return
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the first core often does the system's work too
    with tempfile.TemporaryDirectory() as temporary:
        for number, network in enumerate(options.networks):
            folder = Path(temporary) / str(number)
            folder.mkdir()
            prepare(network, folder, options.data_root)
            for _ in range(options.rounds):
                for name in CONTENDERS:
                    child = [sys.executable, *sys.argv, "--one", name, "--folder", str(folder)]
                    said = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True).stdout
                    figures = json.loads(said.splitlines()[-1])
                    found.setdefault(network, {}).setdefault(name, []).append(figures)
    print(table(found))


if __name__ == "__main__":
    main()
