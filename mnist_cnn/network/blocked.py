"""Computes convolutions, poolings and the layers between them in oneDNN's own memory layout, on an x86 CPU.

In it, activations stay in blocks of 16 channels from one layer to the next. Convolutions and poolings are faster than
in torch's layouts, and the results are the same apart from rounding. `benchmarks/parts.py` measures the gain: on one
core of an AMD EPYC, a training step of `baseline` takes 0.88 of the time, in bfloat16 0.85.
"""

import platform
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn

from mnist_cnn.errors import one_line
from mnist_cnn.machine import has_fast_bfloat16
from mnist_cnn.network.layers.modules import BatchNorm


def worth_blocking(modules: Mapping[str, nn.Module]) -> dict[str, type[nn.Module]]:
    """The modules of a chain to compute in the layout, with their types, by name.

    They are each convolution that fills the layout's blocks, and the modules after it that know the layout.
    With 8 channels, as in `tiny`, the layout gains nothing or loses (0.95 to 1.14 of the time).
    """
    found: dict[str, type[nn.Module]] = {}
    fills = False
    for name, module in modules.items():
        if isinstance(module, nn.Conv2d):
            fills = module.out_channels % 16 == 0 and (module.in_channels % 16 == 0 or module.in_channels <= 3)
            fills = fills and isinstance(module.padding, tuple) and module.padding_mode == "zeros"
        elif isinstance(module, nn.MaxPool2d):
            fills = fills and module.dilation == 1 and not module.return_indices
        elif isinstance(module, BatchNorm):
            fills = fills and module.dim == 1 and module.weight is not None and module.bias is not None
        fills = fills and type(module) in _CALLS
        if fills:
            found[name] = type(module)
    return found


def usable_dtype(x: Tensor, modules: Mapping[str, nn.Module]) -> torch.dtype | None:
    """The type in which images (N, C, H, W) can be computed in oneDNN's layout; None if they must stay in torch's."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or _is_transformed():  # type: ignore[attr-defined,no-untyped-call]
        return None
    if type(x) is not Tensor or x.device.type != "cpu" or x.dtype != torch.float32 or not len(x):
        return None
    # Who wants gradients of images may want gradients of those too; oneDNN has no second derivatives.
    if x.requires_grad or not torch.backends.mkldnn.enabled or nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
        return None
    for module in modules.values():
        # A hook can't read the layout, and oneDNN has no gradients of batch normalisation in evaluation mode.
        if _has_hooks(module) or (torch.is_grad_enabled() and not module.training):
            return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    return dtype if dtype in (torch.float32, torch.bfloat16) and _works(dtype) else None


def _has_hooks(module: nn.Module) -> bool:
    """Whether something happens before or after the module, such as pruning, which makes its weights anew."""
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def call(module: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    """The output of a module; both are in oneDNN's layout, and `x` may still be in torch's."""
    return _CALLS[type(module)](module, x if x.is_mkldnn else x.to_mkldnn(dtype))


def _convolve(module: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(module, nn.Conv2d)
    weight, bias = module.weight.to(x.dtype), None if module.bias is None else module.bias.to(x.dtype)
    padding = cast(tuple[int, int], module.padding)
    return torch.mkldnn_convolution(x, weight, bias, padding, module.stride, module.dilation, module.groups)


def _normalize(module: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(module, BatchNorm)
    weight, bias, eps = module.weight, module.bias, module.eps
    if not module.training:
        return torch.native_batch_norm(x, weight, bias, module.running_mean, module.running_var, False, 0.0, eps)[0]
    x, mean, var = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
    module.follow(mean.detach().to_dense(), var.detach().to_dense())
    return x


_CALLS: dict[type[nn.Module], Callable[[nn.Module, Tensor], Tensor]] = {
    nn.Conv2d: _convolve,
    nn.MaxPool2d: nn.Module.__call__,
    nn.ReLU: nn.Module.__call__,
    BatchNorm: _normalize,
}


def _is_transformed() -> bool:
    """Whether this runs inside torch.func's vmap or grad, which don't know the layout."""
    return torch._C._functorch.peek_interpreter_stack() is not None


@cache
def _works(dtype: torch.dtype) -> bool:
    """Whether these operators, which torch does not document, exist and give the same results as in its own layout.

    Tried once in a process, on four small images; if not, a line says so. It is not tried on processors other than x86,
    where it was not measured, nor in bfloat16 where that is slow.
    """
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16 and not has_fast_bfloat16():
        return False
    try:
        found, expected = (_output_and_gradients(dtype, is_blocked) for is_blocked in (True, False))
        allowed = 1e-4 if dtype == torch.float32 else 0.05  # rounding; anything wrong is far more
        reason = "" if float((found - expected).abs().max() / expected.abs().max()) < allowed else "other results"
    except (AttributeError, RuntimeError, TypeError) as error:  # not there, or not with these arguments
        reason = one_line(error)
    if reason:
        print(
            "warning: convolutions on the CPU are slower than they could be, because torch "
            f"{torch.__version__} can't compute in oneDNN's layout as expected ({reason}).",
            file=sys.stderr,
        )
    return not reason


def _output_and_gradients(dtype: torch.dtype, is_blocked: bool) -> Tensor:
    """Of a small network in training, in one vector; the random numbers of the caller stay as they are."""
    with torch.random.fork_rng(devices=()), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(0)
        chain = nn.Sequential(nn.Conv2d(1, 16, 3), BatchNorm(16, 1e-3, 0.1), nn.MaxPool2d(2), nn.ReLU())
        x = torch.rand(4, 1, 8, 8)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            for module in chain:
                x = call(module, x, dtype) if is_blocked else module(x)
        output = (x.to_dense() if is_blocked else x).float()
        gradients = torch.autograd.grad(output.square().sum(), list(chain.parameters()))
        return torch.cat([tensor.detach().flatten() for tensor in (output, *gradients)])
