"""Optimisers and learning-rate schedulers, made from Hydra targets; and Adam as Keras computes it."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mnist_cnn.config import Config, require_one_of, written
from mnist_cnn.errors import ConfigError, flat
from mnist_cnn.training.targets import class_of, make

# Arguments of schedulers that must be above 0.
_POSITIVE = ("max_lr", "T_max", "step_size")
# Arguments for Lightning, not for the scheduler: when it moves the rate, and by which metric.
_FOR_LIGHTNING = ("interval", "frequency", "monitor")


# The optimiser where none is named: Adam as in Keras.
KERAS_ADAM = {"_target_": f"{__name__}.KerasAdam"}


class KerasAdam(Adam):
    """Adam with Keras' meaning of epsilon, which is added to √v before the bias correction.

    PyTorch adds its epsilon to the corrected √v. The two agree where PyTorch's is eps/√(1−β₂ᵗ) at step t (Keras 3,
    `keras/src/optimizers/adam.py`), so that is set before each step. ValueError if an argument is out of range.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-7,
        fused: bool = False,
    ) -> None:
        if not isinstance(betas, list | tuple) or len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError("it must be a list of two numbers in [0, 1)")
        super().__init__(params, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=fused)
        for group in self.param_groups:
            group["keras_eps"], group["steps"] = eps, 0

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # overloaded
        """Move the weights once."""
        for group in self.param_groups:
            group["steps"] += 1
            group["eps"] = group["keras_eps"] / math.sqrt(1 - group["betas"][1] ** group["steps"])
        loss: float | None = super().step(closure)
        return loss


def build_optimizer(target: Mapping[str, Any], parameters: Iterable[nn.Parameter], fused: bool = True) -> Optimizer:
    """The optimiser that a target names; ConfigError if the class is not an optimiser or rejects an argument.

    `fused`: use one kernel for all weights instead of several for each, if the class has a fused kernel. With
    `decay_kernels_only` in the target, weight decay spares biases and the weights of normalisation.
    """
    target = dict(target)
    groups: list[Any] = list(parameters)
    kernels_only = target.pop("decay_kernels_only", False)
    if not isinstance(kernels_only, bool):
        raise ConfigError(f"{written('optimizer.decay_kernels_only', kernels_only)}: it must be true or false.")
    if kernels_only:
        if not target.get("weight_decay"):
            raise ConfigError("optimizer.decay_kernels_only=true: this optimiser has no weight_decay above 0.")
        others = [weight for weight in groups if weight.dim() < 2]
        kernels = [weight for weight in groups if weight.dim() > 1]
        groups = [{"params": kernels}, {"params": others, "weight_decay": 0.0}]
    has_fused = issubclass(class_of(target, "optimizer", Optimizer), Adam | AdamW | SGD)
    further = {"fused": True} if fused and has_fused and "fused" not in target else {}
    optimizer = make(target, "optimizer", Optimizer, groups, **further)
    optimizer.register_load_state_dict_post_hook(_lay_out_like_weights)
    return optimizer


def build_scheduler(target: Mapping[str, Any], optimizer: Optimizer, steps: int) -> dict[str, Any] | None:
    """A scheduler as Lightning takes it, or None where the target is empty: the rate stays as it is.

    Of its arguments, the word `total_steps` stands for `steps`, the number of optimiser steps in the whole run.
    """
    if not target:
        return None
    arguments = {key: steps if value == "total_steps" else value for key, value in target.items()}
    for_lightning = {key: arguments.pop(key) for key in _FOR_LIGHTNING if key in arguments}
    require_one_of("scheduler.interval", for_lightning.get("interval", "epoch"), "epoch", "step")
    frequency = for_lightning.get("frequency", 1)
    if isinstance(frequency, bool) or not isinstance(frequency, int) or frequency < 1:
        raise ConfigError(f"scheduler.frequency={frequency}: it must be a whole number of at least 1.")
    _check_schedule(arguments)
    return {"scheduler": make(arguments, "scheduler", LRScheduler, optimizer), **for_lightning}


def check_length(built: Mapping[str, Any], steps: int, epochs: int) -> None:
    """Raise ConfigError if a scheduler that `build_scheduler` made ends before a run of so many steps and epochs."""
    planned = getattr(built["scheduler"], "total_steps", None)  # of OneCycleLR, which fails once they are over
    moves = (steps if built.get("interval") == "step" else epochs) // built.get("frequency", 1)
    if isinstance(planned, int) and planned < moves:
        raise ConfigError(
            f"scheduler: it is planned for {planned:,} steps, but moves the rate {moves:,} times in this run; "
            "scheduler.total_steps=total_steps gives it as many as the run has."
        )


def _check_schedule(arguments: Mapping[str, Any]) -> None:
    """Raise ConfigError for what torch takes, and then fails at or trains with."""
    for key in _POSITIVE:
        values = arguments.get(key, [])
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, int | float) and value <= 0:
                raise ConfigError(f"{written(f'scheduler.{key}', arguments[key])}: it must be above 0.")
    rising, steps = arguments.get("pct_start"), arguments.get("total_steps")
    if isinstance(rising, float) and isinstance(steps, int) and (rising * steps == 1 or rising == 1):
        raise ConfigError(
            f"{written('scheduler.pct_start', rising)}: OneCycleLR divides by zero where the rate rises in exactly one "
            "step, or in all of them; take a slightly different value."
        )


def check_optimizer(config: Config, parameters: Iterable[nn.Parameter]) -> None:
    """Raise ConfigError if the optimiser or the scheduler cannot be made for these parameters, or can't move them.

    It is tried on copies, laid out as the module has them: some optimisers take no convolutions, or no dense gradients.
    """
    layout = {4: torch.channels_last}
    copies = [
        nn.Parameter(value.detach().clone(memory_format=layout.get(value.dim(), torch.preserve_format)))
        for value in parameters
    ]
    for copy in copies:
        copy.grad = torch.zeros_like(copy)
    optimizer = build_optimizer(config.optimizer, copies)
    built = build_scheduler(config.scheduler, optimizer, steps=997)  # a prime, of which no usual fraction is one step
    with_gradients: list[bool] = []

    def closure() -> float:
        with_gradients.append(torch.is_grad_enabled())
        return 0.0

    try:
        optimizer.step(closure)
    except Exception as error:  # whatever a class raises for weights that it can't move
        raise ConfigError(f"optimizer ({config.optimizer['_target_']}): {flat(error)}") from error
    if not with_gradients or not all(with_gradients):
        raise ConfigError(
            f"optimizer ({config.optimizer['_target_']}): its step must call the closure that it is given, with "
            "gradients enabled (torch.enable_grad)."
        )
    if built:
        is_plateau = isinstance(built["scheduler"], ReduceLROnPlateau)
        if is_plateau and "monitor" not in built:
            raise ConfigError("scheduler.monitor is missing: the metric to watch, such as val/loss.")
        try:
            built["scheduler"].step(*([0.0] if is_plateau else []))
        except Exception as error:
            raise ConfigError(f"scheduler ({config.scheduler['_target_']}): {flat(error)}") from error


def _lay_out_like_weights(optimizer: Optimizer) -> None:
    """Give loaded optimiser state the memory format of its weights; ValueError if it can't be state of theirs.

    Fused kernels look at neither shapes nor strides: a state that is too small has them write anywhere in memory.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            for key, value in optimizer.state.get(weight, {}).items():
                if not isinstance(value, Tensor):
                    continue
                fits = value.shape == weight.shape or (key == "step" and value.numel() == 1)
                if group.get("fused") and not (fits and value.dtype == torch.float32):
                    raise ValueError(f"{key} has shape {tuple(value.shape)} and type {value.dtype}")
                if value.shape == weight.shape:
                    optimizer.state[weight][key] = torch.empty_like(weight).copy_(value)
