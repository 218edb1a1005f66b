"""Train a network: configuration → data → network → trainer → module → report. `python train.py --help` says how."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from mnist_cnn import quick_imports
from mnist_cnn.config import to_config
from mnist_cnn.hydra_cli import run_hydra


def train(composed: DictConfig) -> float | None:
    """One run, as configured; returns the validation accuracy, which is what a search may optimise."""
    config = to_config(composed)  # checks types and ranges, before anything is made or fetched

    with quick_imports():  # Lightning takes seconds; --help does not wait for it
        from lightning.pytorch import seed_everything

        from mnist_cnn.data.datamodule import MNISTDataModule
        from mnist_cnn.inference.evaluate import check_suits
        from mnist_cnn.network import build_network
        from mnist_cnn.run_folder import is_first_process, open_run_dir
        from mnist_cnn.training.checks import check_machine, check_settings
        from mnist_cnn.training.optimizers import check_optimizer
        from mnist_cnn.training.results import evaluate_and_report
        from mnist_cnn.training.resume.pretrained import load_pretrained, with_network_of
        from mnist_cnn.training.trainer import build_classifier, build_trainer, fit

    check_settings(config)
    check_machine(config)
    seed_everything(config.seed, verbose=False)
    pretrained, stopped_at = load_pretrained(config)  # of model.init_from, or of the run that is resumed
    config = with_network_of(config, pretrained)
    preprocessing = pretrained.preprocessing if pretrained else None
    dataset = pretrained.dataset if pretrained and stopped_at else None  # what data=auto was before
    data = MNISTDataModule(config.data, config.seed, preprocessing, dataset, config.augmentation)
    if pretrained:
        check_suits(pretrained, data.dataset_name, data.source)
        network = pretrained.network
    else:
        network = build_network(config.model.layers, data.source.image_shape, len(data.source.classes))
        network.check_shapes()
    check_optimizer(config, network.parameters())
    if is_first_process():
        print(f"{config.model.name}\n{network.summary()}", file=sys.stderr)

    data.prepare_data()
    data.setup()

    with open_run_dir(config, data.dataset_name) as run_dir:
        trainer = build_trainer(config, run_dir)
        module = build_classifier(config, network, data, trainer, pretrained)
        fit(trainer, module, data, config, stopped_at)
        results = evaluate_and_report(trainer, data, run_dir)
    return results["val/accuracy"] if results else None


if __name__ == "__main__":
    sys.exit(run_hydra(train, Path(__file__).parent / "conf"))
