"""The network that a run starts from: one to be trained further (`model.init_from`), or that of a resumed run."""

from dataclasses import replace

from mnist_cnn.config import Config
from mnist_cnn.errors import ConfigError
from mnist_cnn.inference import checkpoint
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.inference.evaluate import check_suits
from mnist_cnn.training.resume.stopped import load_stopped


def load_pretrained(config: Config) -> TrainedNetwork | None:
    """The network that the run starts from, ready to be trained; None where it starts from new weights.

    ConfigError if the settings ask for another scaling than the network brings, or for another experiment than the one
    that is resumed.
    """
    if config.resume:
        trained = load_stopped(config, config.resume)
    elif config.model.init_from is not None:
        trained = checkpoint.load(config.model.init_from)
        if config.data.normalize != "unit":
            raise ConfigError(
                f"data.normalize={config.data.normalize}: model.init_from brings its own scaling; leave this out."
            )
        check_suits(trained, config.data.name)
    else:
        return None
    trained.network.train().requires_grad_(True)
    return trained


def with_network_of(config: Config, trained: TrainedNetwork | None) -> Config:
    """The configuration with the name and the layers of the network that the run really trains."""
    if trained is None:
        return config
    return replace(config, model=replace(config.model, name=trained.model, layers=trained.network.layers))
