"""Gradients through a ComfyUI diffusion model with respect to its latent.

ComfyUI executes nodes under ``torch.inference_mode`` and streams its weights; neither was made for
a backward pass. Inside ``differentiable(base_model)`` both are safe, and values stay those of
inference, bit for bit:

    options = gradient_options(extra_args["model_options"])
    with differentiable(base_model):
        x = x.clone().requires_grad_()
        denoised = model(x, sigma, **{**extra_args, "model_options": options})
        (gradient,) = torch.autograd.grad(loss(denoised), x)

The backward pass belongs inside, and no graph may outlive the context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from .comfy_layers import alias, carries_gradient, frozen_layers, replaced_forwards
from .comfy_rope import register_rope_formulas

_KEEPING = ("layer_norm", "group_norm", "rms_norm", "batch_norm", "instance_norm")
_KEEPING += ("std", "var", "std_mean", "var_mean", "norm")
KEEP_THEIR_INPUT = {
    getattr(module, name)
    for module in (functional, torch, torch.Tensor)
    for name in _KEEPING
    if hasattr(module, name)
}
"""Norms and spreads, whose inputs blocks and guidance patches go on to write to in place."""


@contextmanager
def differentiable(base_model) -> Iterator[None]:
    """Make a host model (``comfy.model_base.BaseModel``) differentiable in its latent.

    The tensors to differentiate by must be made inside. Weights get no gradient. Every change is
    taken back on leaving, also by an exception or the host's interrupt.

    Raises:
        RuntimeError: the model is spread over several GPUs, which the host runs without gradients.
    """
    patcher = getattr(base_model, "current_patcher", None)
    if patcher is not None and patcher.get_additional_models_with_key("multigpu"):
        _refuse_multigpu()
    register_rope_formulas()
    network = base_model.diffusion_model
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        AliasingMode(),
        frozen_layers(network),
        checkpointed_blocks(network),
    ):
        yield


def gradient_options(model_options: dict) -> dict:
    """A copy of ``model_options`` for calls with gradient: attention by PyTorch's SDPA.

    Of the host's other kernels flash attention raises in a backward pass and sage attention would
    return a wrong gradient. An override that the user's own nodes have set is left out.
    """
    if "multigpu_clones" in model_options:
        _refuse_multigpu()
    transformer_options = {
        **model_options.get("transformer_options", {}),
        "optimized_attention_override": sdpa_attention,
    }
    return {**model_options, "transformer_options": transformer_options}


def sdpa_attention(func: Callable, *args, **kwargs) -> Tensor:
    """The host's ``optimized_attention_override``: PyTorch's attention in place of ``func``."""
    from comfy.ldm.modules.attention import attention_pytorch

    return attention_pytorch(*args, **kwargs)


def _refuse_multigpu() -> None:
    raise RuntimeError(
        "Expected a model on one GPU, got one that is spread over several: ComfyUI runs those "
        "without gradients. Take the MultiGPU node out, or set the gradient to jacobian_free."
    )


class AliasingMode(TorchFunctionMode):
    """Lets autograd record operations on inference tensors; changes no value and no module.

    While gradients are on, every operation gets an alias in place of an inference tensor (weights,
    conditioning, sigmas, masks), which autograd refuses to save, and in place of a parameter, so
    that no graph reaches a weight. What a norm is about to save is cloned: its input because blocks
    of Flux and others add to it in place afterwards, its weight because the host may stream it; and
    so is that of a standard deviation, by which guidance patches rescale in place.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch.is_grad_enabled():
            args, kwargs = _mapped(_recordable, args, kwargs)
            if func in KEEP_THEIR_INPUT and _any_gradient(args, kwargs):
                args, kwargs = _mapped(_copied_tensor, args, kwargs)
        return func(*args, **kwargs)


def _recordable(value):
    if isinstance(value, Tensor):
        return alias(value) if _needs_alias(value) else value
    if type(value) in (list, tuple) and any(_needs_alias(item) for item in value):
        return type(value)(_recordable(item) for item in value)
    return value


def _needs_alias(value) -> bool:
    if type(value) in (Tensor, nn.Parameter):
        return type(value) is nn.Parameter or value.is_inference()
    # Packed and quantised weights must keep their class, which unpacks them.
    return (
        isinstance(value, Tensor)
        and value.is_inference()
        and value.is_floating_point()
        and type(value).__torch_dispatch__ == Tensor.__torch_dispatch__
    )


def _mapped(function: Callable, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    return (
        tuple(function(value) for value in args),
        {name: function(value) for name, value in kwargs.items()},
    )


def _any_gradient(args: tuple, kwargs: dict) -> bool:
    return any(carries_gradient(value) for value in (*args, *kwargs.values()))


def _copied_tensor(value):
    return value.clone() if isinstance(value, Tensor) and value.is_floating_point() else value


def checkpointed_blocks(network: nn.Module) -> AbstractContextManager[None]:
    """Within it, the network's blocks keep only their inputs and run again in the backward pass.

    A block is what stands in a ``ModuleList`` of the network itself; one that stands elsewhere
    costs memory, nothing else. The block is wrapped, not the host's call of it: where a node has
    replaced a block, that call is a closure over the loop variable and would run the last block.
    """
    lists = [child for child in network.children() if isinstance(child, nn.ModuleList)]
    return replaced_forwards(
        (block, _checkpointed_forward(block.forward)) for blocks in lists for block in blocks
    )


def _checkpointed_forward(original: Callable) -> Callable:
    def forward(*args, **kwargs):
        if not _any_gradient(args, kwargs):
            return original(*args, **kwargs)
        # Without arguments: checkpoint() would save them, and autograd refuses inference tensors.
        return checkpoint(
            _Replay(original, args, kwargs),
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=_replay_contexts,
        )

    return forward


class _Replay:
    """One call of a block that can be made again, though block and host write to its arguments.

    Each call gets copies of the tensors, because blocks add to their inputs in place. Those that
    carry a gradient are copied once more at the start, because later blocks may write to them, and
    so are dictionaries: the host notes the current block's number in one that all blocks share.
    """

    def __init__(self, block: Callable, args: tuple, kwargs: dict):
        self.block = block
        self.first = args, kwargs
        self.later = _mapped(_kept, args, kwargs)

    def __call__(self):
        args, kwargs = _mapped(_copied_tensor, *(self.first or self.later))
        self.first = None
        return self.block(*args, **kwargs)


def _kept(value):
    if type(value) is dict:
        return dict(value)
    return value.clone() if carries_gradient(value) else value


def _replay_contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
    # autograd.grad() suspends the mode for the whole backward pass: it has to be entered again.
    return nullcontext(), AliasingMode()
