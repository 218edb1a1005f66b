"""Muon, an optimiser that makes the momentum of each kernel an orthogonal matrix before it takes a step."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mnist_cnn.machine import has_fast_bfloat16

# The coefficients of the iteration (Jordan et al. 2024), chosen for speed: singular values end between 0.7 and 1.2.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5


class Muon(Optimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) for all kernels but the last, else AdamW.

    A kernel is a weight of two or more dimensions; that of a convolution counts as a matrix with a row for each filter.
    The steps are as long as AdamW's typically are (Liu et al. 2025, arXiv:2502.16982), so one `lr` serves all weights.
    Weight decay acts on kernels only. `torch.optim.Muon` takes matrices only, and leaves the other weights to a second
    optimiser. ValueError if an argument is out of range.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 2e-2,
    ) -> None:
        if not isinstance(betas, list | tuple) or len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError("it must be a list of two numbers in [0, 1)")
        if not (lr >= 0 and eps > 0 and weight_decay >= 0):
            raise ValueError("lr and weight_decay must not be negative, and eps must be above 0")
        weights = list(params)
        if not all(isinstance(weight, Tensor) for weight in weights):
            raise ValueError("set optimizer.decay_kernels_only=false: its weight decay spares all but kernels anyway")
        kernels = [weight for weight in weights if weight.dim() > 1]
        others = [weight for weight in weights if weight.dim() < 2]
        groups = [
            {"params": kernels[:-1], "orthogonal": True},
            {"params": kernels[-1:], "orthogonal": False},
            {"params": others, "orthogonal": False, "weight_decay": 0.0},
        ]
        defaults = {"lr": lr, "betas": (betas[0], betas[1]), "eps": eps, "weight_decay": weight_decay}
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # overloaded
        """Move the weights once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    (self._orthogonal_step if group["orthogonal"] else self._adamw_step)(weight, weight.grad, **group)
        return loss

    def _orthogonal_step(
        self, weight: Tensor, gradient: Tensor, lr: float, betas: tuple[float, float], weight_decay: float, **_: object
    ) -> None:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        momentum = state["momentum"]
        momentum.lerp_(gradient, 1 - betas[0])
        matrix = torch.lerp(gradient, momentum, betas[0]).flatten(1)  # a step ahead, as Nesterov's
        size = 0.2 * math.sqrt(max(matrix.shape))
        weight.mul_(1 - lr * weight_decay)
        weight.add_(orthogonal(matrix).view(weight.shape), alpha=-lr * size)

    def _adamw_step(
        self, weight: Tensor, gradient: Tensor, lr: float, betas: tuple[float, float], weight_decay: float, eps: float,
        **_: object,
    ) -> None:  # fmt: skip
        state = self.state[weight]
        if not state:
            state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(weight), exp_avg_sq=torch.zeros_like(weight))
        state["step"] += 1
        step = float(state["step"])
        state["exp_avg"].lerp_(gradient, 1 - betas[0])
        state["exp_avg_sq"].lerp_(gradient.square(), 1 - betas[1])
        scale = (state["exp_avg_sq"] / (1 - betas[1] ** step)).sqrt_().add_(eps)
        weight.mul_(1 - lr * weight_decay)
        weight.addcdiv_(state["exp_avg"], scale, value=-lr / (1 - betas[0] ** step))


def orthogonal(matrix: Tensor) -> Tensor:
    """About U·Vᵀ of a matrix U·S·Vᵀ (rows, columns), by a Newton–Schulz iteration, in bfloat16 where that is fast."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.T if is_tall else matrix
    if matrix.device.type == "cuda" or has_fast_bfloat16():
        x = x.bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.T
        x = _A * x + (_B * square + _C * square @ square) @ x
    return (x.T if is_tall else x).to(matrix.dtype)
