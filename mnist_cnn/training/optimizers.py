"""How do the weights move, and how does the learning rate? From plain values to torch's classes."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from mnist_cnn.config import OptimizerConfig, SchedulerConfig


class KerasAdam(Adam):
    """Adam with Keras' meaning of epsilon, which is added to √v before the bias correction.

    PyTorch adds its epsilon to the corrected √v; the two agree where PyTorch's is eps/√(1−β₂ᵗ) at step t
    (Keras 3, `keras/src/optimizers/adam.py`), and that is what is set before each step.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], eps: float, fused: bool = False
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, fused=fused)
        for group in self.param_groups:
            group["keras_eps"], group["steps"] = eps, 0

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # overloaded
        """Move the weights once."""
        for group in self.param_groups:
            group["steps"] += 1
            group["eps"] = group["keras_eps"] / math.sqrt(1 - group["betas"][1] ** group["steps"])
        loss: float | None = super().step(closure)
        return loss


def build_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter], fused: bool = True) -> Optimizer:
    """The optimiser that a configuration names; `fused`: in one kernel for all weights instead of several for each."""
    optimizer = _make(config, parameters, fused)
    optimizer.register_load_state_dict_post_hook(_lay_like_weights)
    return optimizer


def _make(config: OptimizerConfig, parameters: Iterable[nn.Parameter], fused: bool) -> Optimizer:
    betas = (config.betas[0], config.betas[1])
    match config.name:
        case "adam":
            return KerasAdam(parameters, config.lr, betas, config.eps, fused)
        case "adam_pytorch":
            return Adam(parameters, config.lr, betas, config.eps, config.weight_decay, fused=fused)
        case "adamw":
            return AdamW(parameters, config.lr, betas, config.eps, config.weight_decay, fused=fused)
        case _:
            return SGD(parameters, config.lr, config.momentum, 0, config.weight_decay, config.nesterov, fused=fused)


def _lay_like_weights(optimizer: Optimizer) -> None:
    """Order what was read as the weights lie in memory: the fused kernels go through both without looking at strides.

    A run that was stopped before its weights were channels-last has the other order.
    """
    for weight, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                state[key] = torch.empty_like(weight).copy_(value)


def build_scheduler(config: SchedulerConfig, optimizer: Optimizer, steps: int) -> LRScheduler | None:
    """The learning rate's course over all `steps` of training, to be moved after every one; None: it stays."""
    match config.name:
        case "onecycle":
            peak = optimizer.param_groups[0]["lr"]
            return OneCycleLR(optimizer, peak, total_steps=steps, pct_start=config.warmup_fraction)
        case "cosine":
            return CosineAnnealingLR(optimizer, T_max=steps)
        case _:
            return None
