"""The network that a run starts from: one to be trained further (`model.init_from`), or that of a resumed run."""

from dataclasses import replace
from pathlib import Path

from mnist_cnn.config import Config
from mnist_cnn.errors import ConfigError
from mnist_cnn.inference import checkpoint
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.training.resume.stopped import find_stopped


def load_pretrained(config: Config) -> tuple[TrainedNetwork | None, Path | None]:
    """The network that the run starts from, ready to be trained, and the checkpoint where it was stopped.

    The first is None where the run starts from new weights, the second where it starts at its first step. ConfigError
    if the settings ask for another scaling than the network brings, or for another experiment than the one that is
    resumed; CheckpointError if a checkpoint can't be used.
    """
    trained, stopped_at = find_stopped(config, config.resume) if config.resume else (None, None)
    if trained is None and config.model.init_from is not None:
        trained = checkpoint.load(config.model.init_from)
        if config.data.normalize != "unit":
            raise ConfigError(
                f"data.normalize={config.data.normalize}: model.init_from brings its own scaling; leave this out."
            )
    if trained is not None:
        trained.network.train().requires_grad_(True)
    return trained, stopped_at


def with_network_of(config: Config, trained: TrainedNetwork | None) -> Config:
    """The configuration with the name and the layers of the network that `model.init_from` brings."""
    if trained is None or config.model.init_from is None:
        return config
    return replace(config, model=replace(config.model, name=trained.model, layers=trained.network.layers))
