"""Train a network: configuration → network → data → module → trainer → report. `python train.py --help` says how."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from mnist_cnn.config import typed
from mnist_cnn.hydra_cli import command_line


def train(composed: DictConfig) -> float | None:
    """One run, as configured; returns the validation accuracy, which is what a search may optimise."""
    config = typed(composed)  # a setting that can't be ends here, before anything is made or fetched

    from lightning.pytorch import seed_everything  # takes seconds; --help does not wait for it
    from lightning.pytorch.utilities import rank_zero_only

    from mnist_cnn.data.datamodule import MNISTDataModule
    from mnist_cnn.data.datasets import class_count, image_shape
    from mnist_cnn.network.build import build_network
    from mnist_cnn.run_folder import make_run_dir
    from mnist_cnn.training.trainer import build_trainer, check, classifier, finish, fit, origin

    before = origin(config, composed)  # what model.from names
    check(config)
    seed_everything(config.seed, verbose=False)
    shape, classes = image_shape(config.data.name), class_count(config.data.name)
    network = before.network if before else build_network(config.model.layers, shape, classes)
    rank_zero_only(print)(f"{config.model.name}\n{network.summary()}", file=sys.stderr)

    data = MNISTDataModule(config.data, config.seed, before.preprocessing if before else None)
    data.prepare_data()
    data.setup()

    module = classifier(config, network, data, before)
    run_dir = make_run_dir(config, data.dataset_name)
    trainer = build_trainer(config, composed, run_dir)
    fit(trainer, module, data, config)
    results = finish(trainer, data, run_dir)
    if trainer.interrupted:
        raise KeyboardInterrupt  # ends a sweep too
    return results["val/accuracy"] if results else None


if __name__ == "__main__":
    sys.exit(command_line(train, Path(__file__).parent / "conf"))
