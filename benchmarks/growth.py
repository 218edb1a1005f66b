"""How do time and memory grow with the batch, the width of the network, and the number of images?

    python benchmarks/growth.py --data-root data --output growth      about ten minutes on two cores

Each setting trains `baseline` for two epochs in a process of its own; the second one is timed, and the process's
largest memory read. `width` multiplies filters and units of all layers but the last. More images than MNIST has are
repetitions.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from speed import ROOT, watch


@dataclass(frozen=True)
class Setting:
    """One run."""

    batch_size: int = 128
    width: int = 1
    images: int = 20_000


SERIES = {
    "batch_size": [Setting(batch_size=size) for size in (32, 64, 128, 256, 512, 1024, 2048, 4096)],
    "width": [Setting(width=width) for width in (1, 2, 4)],
    "images": [Setting(images=images) for images in (10_000, 54_000, 200_000, 1_000_000)],
}


def train(setting: Setting, data_root: str) -> None:
    """What `train.py` does, with as many images as are wanted."""
    import mnist_cnn  # noqa: F401, I001  # before torch: it bounds how long OpenMP's threads spin
    import torch
    from hydra import compose, initialize_config_dir
    from lightning.pytorch import seed_everything

    from mnist_cnn.config import to_config
    from mnist_cnn.data.datamodule import MNISTDataModule
    from mnist_cnn.data.images import Images
    from mnist_cnn.network import build_network
    from mnist_cnn.training.trainer import build_classifier, build_trainer, fit

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"), tempfile.TemporaryDirectory() as folder:
        batch = f"data.batch_size={setting.batch_size}"
        composed = compose("config", ["data=mnist", f"data.root={data_root}", batch, "trainer.max_epochs=2"])
        for layer in composed.model.layers[:-1]:
            for arguments in layer.values() if not isinstance(layer, str) else ():
                for size in {"filters", "units"} & set(arguments):
                    arguments[size] *= setting.width
        config = to_config(composed)
        seed_everything(0, verbose=False)
        data = MNISTDataModule(config.data, 0)
        data.prepare_data()
        data.setup()
        chosen = torch.arange(setting.images) % len(data.train)
        data.train = Images(data.train.images[chosen], data.train.labels[chosen])
        data.val = Images(data.val.images[:1000], data.val.labels[:1000])
        trainer = build_trainer(config, Path(folder), "benchmarks/growth.py")
        module = build_classifier(config, build_network(config.model.layers, (1, 28, 28), 10), data, trainer, None)
        fit(trainer, module, data, config)


def measure(setting: Setting, data_root: Path) -> dict[str, Any]:
    """Seconds of the second epoch, milliseconds for 1,000 images, and MB."""
    arguments = [f"--{key.replace('_', '-')}={value}" for key, value in asdict(setting).items()]
    seen = watch([sys.executable, __file__, "--one", f"--data-root={data_root.resolve()}", *arguments])
    seconds = seen.epochs[0]
    return {**asdict(setting), "seconds": seconds, "ms": 1e6 * seconds / setting.images, "memory": seen.memory}


def draw(found: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """A column for each series: time above, memory below."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(found), figsize=(4 * len(found), 6), layout="constrained", sharex="col")
    for (above, below), (name, rows) in zip(axes.T, found.items(), strict=True):
        x = [row[name] for row in rows]
        what = "seconds" if name == "images" else "ms"
        above.plot(x, [row[what] for row in rows], marker="o")
        below.plot(x, [row["memory"] for row in rows], marker="o", color="tab:orange")
        above.set(xscale="log", yscale="log" if name != "batch_size" else "linear", title=name.replace("_", " "))
        above.set_ylabel("s per epoch" if name == "images" else "ms per 1,000 images")
        below.set(ylabel="peak memory, MB", xlabel=name.replace("_", " "), xticks=x)
        below.set_xticklabels([f"{value:,}" for value in x], rotation=45, ha="right")
        below.minorticks_off()
        for axis in (above, below):
            axis.set_ylim(bottom=0) if axis.get_yscale() == "linear" else None
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Measure, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--output", type=Path, help="write OUTPUT.json and OUTPUT.svg")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # a single run, in this process
    for key, default in asdict(Setting()).items():
        parser.add_argument(f"--{key.replace('_', '-')}", type=int, default=default, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT)]
    if options.one:
        train(Setting(options.batch_size, options.width, options.images), str(options.data_root))
        return
    found: dict[str, list[dict[str, Any]]] = {}
    for name, settings in SERIES.items():
        found[name] = []
        print(f"\n| {name.replace('_', ' ')} | s per epoch | ms per 1,000 images | peak memory, MB |")
        print("|---:|---:|---:|---:|")
        for setting in settings:
            row = measure(setting, options.data_root)
            found[name].append(row)
            print(f"| {row[name]:,} | {row['seconds']:.2f} | {row['ms']:.0f} | {row['memory']:,.0f} |", flush=True)
    if options.output:
        options.output.with_suffix(".json").write_text(json.dumps(found, indent=1))
        draw(found, options.output.with_suffix(".svg"))


if __name__ == "__main__":
    main()
