"""Layers of a ComfyUI model that autograd may pass through without keeping a weight.

ComfyUI streams weights: with too little VRAM, and by default with its dynamic VRAM, the weight of a
layer lies in a buffer that the next layer overwrites. What autograd saved in the forward pass is
something else by the backward pass, silently. A frozen layer saves nothing and asks the host for
its weight again, which also rebuilds it where it is patched (LoRA), quantised or GGUF.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

CONVOLUTION_ADJOINTS = {
    nn.Conv1d: nn.grad.conv1d_input,
    nn.Conv2d: nn.grad.conv2d_input,
    nn.Conv3d: nn.grad.conv3d_input,
}
Adjoint = Callable[[Tensor, Tensor, torch.Size], Tensor]


def alias(tensor: Tensor) -> Tensor:
    """A plain tensor on the same memory: no copy, no graph, and autograd may save it.

    Call it outside of inference mode: there it would make one more inference tensor.
    """
    plain = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return plain.set_(
        tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )


def carries_gradient(value) -> bool:
    """Whether a graph is being recorded through ``value``."""
    return isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled()


@contextmanager
def replaced_forwards(forwards: Iterable[tuple[nn.Module, Callable]]) -> Iterator[None]:
    """Give modules a ``forward`` of their own (on the instance, no class is touched).

    Leaving puts back exactly what every module had, whatever was raised inside.
    """
    before = []
    try:
        for module, forward in forwards:
            attributes = vars(module)
            before.append((attributes, attributes.get("forward")))
            attributes["forward"] = forward
        yield
    finally:
        for attributes, forward in reversed(before):
            if forward is None:
                attributes.pop("forward", None)
            else:
                attributes["forward"] = forward


def frozen_layers(model: nn.Module) -> AbstractContextManager[None]:
    """Within it, linear and convolution layers of the host under ``model`` are frozen.

    Gradients pass to a layer's input only. Values stay those of inference, bit for bit. A kernel
    that quantises its input is passed straight through, as if it had multiplied exactly.
    """
    layers = [(module, _adjoint(module)) for module in model.modules()]
    return replaced_forwards(
        (layer, _frozen_forward(layer, layer.forward, adjoint))
        for layer, adjoint in layers
        if adjoint
    )


def _adjoint(layer: nn.Module) -> Adjoint | None:
    """(gradient, weight, input shape) -> gradient of the input; None: not a layer to freeze."""
    if not hasattr(layer, "comfy_cast_weights") or getattr(layer, "weight", None) is None:
        return None
    if "forward" in vars(layer):  # replaced by somebody else (a bypass LoRA adds its own term)
        return None
    if hasattr(layer, "in_features"):  # the host's quantised Linear is no torch.nn.Linear
        return _linear_adjoint
    kinds = [kind for kind in CONVOLUTION_ADJOINTS if isinstance(layer, kind)]
    if not kinds or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None

    def convolution_adjoint(gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        geometry = layer.stride, layer.padding, layer.dilation, layer.groups
        return CONVOLUTION_ADJOINTS[kinds[0]](shape, weight, gradient, *geometry)

    return convolution_adjoint


def _linear_adjoint(gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    return gradient @ weight


def _frozen_forward(layer: nn.Module, original: Callable, adjoint: Adjoint) -> Callable:
    def forward(*args, **kwargs):
        if len(args) == 1 and not kwargs and carries_gradient(args[0]):
            return FrozenLayer.apply(args[0], layer, original, adjoint)
        return original(*args, **kwargs)

    return forward


class FrozenLayer(torch.autograd.Function):
    """y = layer(x) as in inference; the backward pass fetches the weight anew."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: nn.Module, original: Callable, adjoint: Adjoint) -> Tensor:
        ctx.layer, ctx.adjoint, ctx.shape, ctx.dtype = layer, adjoint, x.shape, x.dtype
        x = x.detach()
        if layer.weight.dtype.is_floating_point and layer.weight.dtype.itemsize == 1:
            x = x.clone()  # the host's float8 kernel clamps its input in place
        y = original(x)
        # A view made in here could not be written to outside, and blocks add to it in place.
        return alias(y) if y._is_view() else y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        with fetched_weight(ctx.layer, gradient) as weight:
            x_gradient = ctx.adjoint(gradient, weight, ctx.shape)
        return x_gradient.to(ctx.dtype), None, None, None


@contextmanager
def fetched_weight(layer: nn.Module, like: Tensor) -> Iterator[Tensor]:
    """The layer's weight as its own forward sees it, in the type and on the device of ``like``.

    Only valid inside: afterwards the host may overwrite it.
    """
    from comfy import ops

    own_cast = getattr(layer, "cast_bias_weight", None)
    if own_cast is not None:  # ComfyUI-GGUF dequantises in a method of the layer
        yield own_cast(like)[0].to(like.dtype)
        return
    weight, bias, stream = ops.cast_bias_weight(layer, like, offloadable=True)
    try:
        plain = weight.dequantize() if isinstance(weight, ops.QuantizedTensor) else weight
        yield plain.to(like.dtype)
    finally:
        ops.uncast_bias_weight(layer, weight, bias, stream)
