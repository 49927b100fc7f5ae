"""Autograd formulas for the rotary-embedding operators of ``comfy_kitchen``.

Since 0.8 ComfyUI rotates queries and keys with custom operators (on newer hosts fused with the RMS
norm before them) that have no autograd formula, so a backward raises. Both parts have a simple
adjoint: of a rotation, the same operator with every 2 x 2 matrix transposed; of the norm, the one
that PyTorch has.
"""

from __future__ import annotations

import functools
import sys

import torch
from torch import Tensor

OPERATORS = (
    "apply_rope",
    "apply_rope1",
    "apply_rope_split_half",
    "apply_rope_split_half1",
    "rms_rope",
    "rms_rope1",
    "rms_rope_split_half",
    "rms_rope_split_half1",
)
ROTATED = ("x", "xq", "xk", "q", "k")
SCALES = ("scale", "q_scale", "k_scale")
KNOWN = (*ROTATED, *SCALES, "freqs_cis", "epsilon")


@functools.cache
def register_rope_formulas() -> None:
    """Give every RoPE operator of this process that cannot be differentiated a formula.

    The operators are global: a formula that this pack under another module name, another pack or
    a newer ``comfy_kitchen`` brought is found by trying it, and kept.
    """
    if "comfy_kitchen" not in sys.modules:
        return
    for name in OPERATORS:
        operator = getattr(torch.ops.comfy_kitchen, name, None)
        if operator is not None and not _differentiates(operator):
            formula = RopeFormula(name)
            torch.library.register_autograd(
                f"comfy_kitchen::{name}", formula.backward, setup_context=formula.setup
            )


def _differentiates(operator) -> bool:
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.ones(1, 1, 1, 2, requires_grad=True)
        samples = dict.fromkeys(SCALES, torch.ones(2))
        samples["freqs_cis"] = torch.eye(2).reshape(1, 1, 1, 1, 2, 2)
        required = [a for a in operator.default._schema.arguments if not a.has_default_value()]
        try:
            y = operator(*(samples.get(a.name, x) for a in required))
            torch.autograd.grad(y if isinstance(y, Tensor) else y[0].sum() + y[1].sum(), x, x)
        except RuntimeError:
            return False
    return True


class RopeFormula:
    """The formula of one operator. Arguments go by their names: their number and order drift.

    Shapes: rotated tensors [..., d]; ``freqs_cis`` [..., d / 2, 2, 2], broadcast; scales [d].
    """

    def __init__(self, name: str):
        operators = torch.ops.comfy_kitchen
        self.name = name
        self.arguments = getattr(operators, name).default._schema.arguments
        self.rotate = (
            operators.apply_rope_split_half1 if "split_half" in name else operators.apply_rope1
        )

    def setup(self, ctx, inputs, output) -> None:
        given = {a.name: value for a, value in zip(self.arguments, inputs, strict=True)}
        for argument in self.arguments:
            value = given[argument.name]
            if argument.name not in KNOWN and value != argument.default_value:
                raise NotImplementedError(
                    f"comfy_kitchen::{self.name} with {argument.name}={value} has no gradient here."
                )
        ctx.epsilon = given.get("epsilon")
        saved = [given["freqs_cis"]]
        if ctx.epsilon is not None:
            scales = [given[name] for name in SCALES if given.get(name) is not None]
            saved += [given[name] for name in ROTATED if name in given]
            # A private copy: the host may keep a layer's weight in a buffer that it uses again.
            saved += [scale.clone() for scale in scales]
        ctx.save_for_backward(*saved)

    def backward(self, ctx, *gradients: Tensor | None):
        freqs, *rest = ctx.saved_tensors  # read once: a checkpoint forbids a second time
        transposed = freqs.transpose(-1, -2).contiguous()
        back = [g if g is None else self.rotate(g.contiguous(), transposed) for g in gradients]
        if ctx.epsilon is not None:
            values, scales = rest[: len(back)], rest[len(back) :]
            scales = scales * len(back) if len(scales) == 1 else scales
            back = [
                g if g is None else _rms_norm_adjoint(g, x, scale, ctx.epsilon)
                for g, x, scale in zip(back, values, scales, strict=True)
            ]
        remaining = iter(back)
        return tuple(next(remaining) if a.name in ROTATED else None for a in self.arguments)


def _rms_norm_adjoint(gradient: Tensor, x: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = torch.nn.functional.rms_norm(x, (x.shape[-1],), scale.to(x.dtype), epsilon)
        return torch.autograd.grad(y, x, gradient)[0]
