"""What is checked before a run makes or fetches anything."""

import sys

import torch

from mnist_cnn import machine
from mnist_cnn.config import Config
from mnist_cnn.data.download import mirror_address
from mnist_cnn.errors import ConfigError
from mnist_cnn.run_folder import check_run_dir


def check_machine(config: Config) -> None:
    """Raise ConfigError if this machine or its folders can't do what is asked."""
    accelerator = config.trainer.accelerator
    if accelerator in ("cuda", "gpu", "mps") and not _has(accelerator):
        kind = "Apple" if accelerator == "mps" else "NVIDIA"
        raise ConfigError(f"trainer.accelerator={accelerator}: torch finds no {kind} GPU here; take trainer=cpu.")
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not (_has("cuda") or _has("mps")))
    if config.trainer.precision == "bf16-mixed" and on_cpu and not machine.has_fast_bfloat16():
        print(
            "warning: trainer.precision=bf16-mixed: this processor has neither AVX512_BF16 nor AMX and will be many "
            "times slower than with 32-true.",
            file=sys.stderr,
        )
    if config.data.mirror:
        mirror_address(config.data.mirror)
    check_run_dir(config)


def _has(accelerator: str) -> bool:
    return torch.backends.mps.is_available() if accelerator == "mps" else torch.cuda.is_available()
