"""Gradients through real host models, as a node asks for them. Prints one JSON object.

    COMFYUI_PATH=... <the host's python> gradients.py [sd3] [sd3_float8] [flux] ... [rope]

Small networks with random weights (no gate is zero) run through the host's own guider and sampler
under ``torch.inference_mode``; SD3 with guidance, so that both prompts share a batch.
"""

import contextlib
import gc
import importlib
import json
import sys
import types

from started_host import ROOT, start_host

CASES = sys.argv[1:]
"""Models, and "rope"; none: all."""
start_host()

import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.supported_models  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.modules.attention import attention_pytorch  # noqa: E402
from small_networks import FLUX, QWEN_IMAGE, SD3, Z_IMAGE  # noqa: E402

SIGMA, GUIDANCE = 0.7, 4.0
BATCH, SIDE, TOKENS = 2, 12, 20
DIRECTIONS = 4
EPSILON = 3e-3  # of the finite difference, times a direction of unit root mean square
VIDEO = {"qwen_image"}
"""Networks whose latents have a frame."""


def load_pack(name: str):
    """The pack's gradient module, with the tree loaded as package ``name``; no __init__ is run."""
    for suffix in ("", ".sampling", ".sampling.hosts"):
        package = types.ModuleType(name + suffix)
        package.__path__ = [str(ROOT.joinpath(*suffix.split(".")))]
        sys.modules[package.__name__] = package
    return importlib.import_module(f"{name}.sampling.hosts.comfy_gradients")


pack = load_pack("flow_ttrl")


class Interrupt(BaseException):
    """As the host's own interrupt on newer versions."""


def build(config_class, unet_config: dict, storage: torch.dtype = torch.float32):
    """A host model of that architecture with random weights, in a ModelPatcher; float32 maths."""
    config = config_class(dict(unet_config))
    config.set_inference_dtype(storage, None if storage is torch.float32 else torch.float32)
    model = config.get_model({}, "")
    draws = torch.Generator().manual_seed(1)
    for name, weight in model.diffusion_model.named_parameters():
        fan_in = weight[0].numel() if weight.ndim > 1 else 25
        values = torch.randn(weight.shape, generator=draws) / fan_in**0.5
        weight.data.copy_(values + 1 if "norm" in name and weight.ndim == 1 else values)
    for buffer in model.diffusion_model.buffers():
        if buffer.is_floating_point() and buffer.ndim == 3:  # SD3's table of positions
            buffer.copy_(torch.randn(buffer.shape, generator=draws))
    patcher_class = getattr(
        comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher
    )
    cpu = torch.device("cpu")
    return patcher_class(model.eval(), load_device=cpu, offload_device=cpu)


def sample_with(patcher, cfg: float, sampler_function, shape: tuple) -> dict:
    """Run ``sampler_function(model, x, sigma, extra_args)`` where a node's sampler would run.

    On latents of ``shape``.
    """
    draws = torch.Generator().manual_seed(2)

    def prompt():
        pooled = torch.randn(1, 96, generator=draws)
        return [
            [
                torch.randn(1, TOKENS, 96, generator=draws),
                {"pooled_output": pooled, "guidance": 3.5},
            ]
        ]

    result = {}

    def sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        result.update(sampler_function(model, x, sigmas[0].expand(x.shape[0]), extra_args))
        return x

    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(prompt(), prompt())
    guider.set_cfg(cfg)
    noise = torch.randn(shape, generator=draws)
    guider.sample(
        noise,
        torch.zeros_like(noise),
        comfy.samplers.KSAMPLER(sampler),
        torch.tensor([SIGMA, 0.0]),
        disable_pbar=True,
        seed=0,
    )
    return result


class Probe:
    """Loss, gradient and finite differences of one model at one latent, inside the host's sampler.

    The loss is a fixed random projection of the guided velocity, summed in float64.
    """

    def __init__(self, model, x, sigma, extra_args):
        self.model, self.x, self.sigma, self.extra_args = model, x, sigma, extra_args
        self.base = model.inner_model.inner_model
        self.network = self.base.diffusion_model
        self.draws = torch.Generator().manual_seed(3)
        self.weight = self.random(torch.float64)

    def random(self, dtype=torch.float32):
        return torch.randn(self.x.shape, generator=self.draws, dtype=dtype)

    def velocity(self, x, attention=None):
        """Guided velocity as the pack's adapter takes it; ``attention`` replaces the override."""
        options = pack.gradient_options(self.extra_args["model_options"])
        if attention is not None:
            options["transformer_options"]["optimized_attention_override"] = attention
        denoised = self.model(x, self.sigma, **{**self.extra_args, "model_options": options})
        return (x - denoised) / SIGMA

    def loss(self, x, attention=None):
        return (self.velocity(x, attention).double() * self.weight).sum()

    def gradient(self, context, attention=None, between=None):
        with context:
            x = self.x.clone().requires_grad_()
            loss = self.loss(x, attention)
            if between is not None:
                between()
            return torch.autograd.grad(loss, x)[0].detach()

    def differentiable(self):
        return pack.differentiable(self.base)

    @contextlib.contextmanager
    def plain_autograd(self, blocks=False):
        """Autograd as it would be without frozen layers."""
        checkpoints = pack.checkpointed_blocks(self.network) if blocks else contextlib.nullcontext()
        with torch.inference_mode(False), torch.enable_grad(), pack.AliasingMode(), checkpoints:
            yield

    def finite_difference_error(self, gradient):
        """|slopes - differences| / |differences| over random directions and the gradient's own."""
        directions = [self.random() for _ in range(DIRECTIONS)]
        directions.append(gradient / gradient.square().mean().sqrt())
        slopes, differences = [], []
        for direction in directions:
            step = EPSILON * direction
            forward, backward = self.x + step, self.x - step
            realised = (forward - backward).double()  # what float32 made of the step
            slopes.append((gradient.double() * realised).sum())
            differences.append(self.loss(forward) - self.loss(backward))
        # The gradient's own direction must not outshine the random ones.
        pairs = zip(slopes[:-1], differences[:-1], strict=True)
        random = sum((a - b) ** 2 for a, b in pairs) / sum(b**2 for b in differences[:-1])
        own = abs(slopes[-1] / differences[-1] - 1)
        return float(max(random**0.5, own))

    def state(self):
        """Every attribute of every module by identity, parameters and buffers included."""
        return [
            {
                name: {key: id(item) for key, item in value.items()}
                if isinstance(value, dict)
                else id(value)
                for name, value in vars(module).items()
            }
            for module in self.base.modules()
        ]


def relative(a, b) -> float:
    return float((a - b).norm() / b.norm())


def detached_attention(func, *args, **kwargs):
    return attention_pytorch(*args, **kwargs).detach()


def attention_batch(probe) -> int:
    """Items that share one call of the network: latents times prompts."""
    sizes = set()

    def noting_attention(func, q, *args, **kwargs):
        sizes.add(q.shape[0])
        return attention_pytorch(q, *args, **kwargs)

    probe.velocity(probe.x, noting_attention)
    return sizes.pop() if len(sizes) == 1 else 0


def numbered_attention(func, *args, **kwargs):
    """An attention that depends on the block's number, as patches of single blocks do."""
    number = kwargs["transformer_options"].get("block_index", 0)
    return attention_pytorch(*args, **kwargs) * (1 + 0.5 * number)


def measure(model, x, sigma, extra_args) -> dict:
    """Everything the tests ask of one model."""
    probe = Probe(model, x, sigma, extra_args)
    before, velocity = probe.state(), probe.velocity(x)
    with probe.differentiable():
        recorded = probe.velocity(x.clone().requires_grad_()).detach()
    gradient = probe.gradient(probe.differentiable())
    detached = probe.gradient(probe.differentiable(), detached_attention)
    numbered = probe.gradient(probe.differentiable(), numbered_attention)
    reference = probe.gradient(probe.plain_autograd(), numbered_attention)
    again = load_pack("custom_nodes_comfyui_flow_ttrl")
    return {
        "finite_difference_error": probe.finite_difference_error(gradient),
        "attention_share": relative(detached, gradient),
        "gradient_norm": float(gradient.norm()),
        "batch": attention_batch(probe),
        "multigpu_refused": refuses_multigpu(probe),
        "forward_equal": torch.equal(recorded, velocity),
        "default_attention_difference": relative(default_velocity(probe), velocity),
        "second_load_equal": torch.equal(
            probe.gradient(again.differentiable(probe.base)), gradient
        ),
        "block_number_error": relative(numbered, reference),
        "saved_bytes_plain": saved_bytes(probe, probe.plain_autograd()),
        "saved_bytes": saved_bytes(probe, probe.differentiable()),
        **rollout(probe, gradient),
        **streaming(probe, velocity, gradient),
        **after_errors(probe),
        "modules_unchanged": probe.state() == before,
        "forward_after_equal": torch.equal(probe.velocity(x), velocity),
    }


def default_velocity(probe):
    denoised = probe.model(probe.x, probe.sigma, **probe.extra_args)
    return (probe.x - denoised) / SIGMA


def rollout(probe, gradient) -> dict:
    """Whether other latents may be sampled between forward and backward, without a graph."""
    others = torch.cat([probe.x.flip(0), 0.5 * probe.x])
    outside = [probe.velocity(part) for part in others.split(BATCH)]
    inside = []

    def sample():
        with torch.no_grad():
            inside.extend(probe.velocity(part.clone()) for part in others.split(BATCH))

    again = probe.gradient(probe.differentiable(), between=sample)
    return {
        "rollout_equal": all(map(torch.equal, inside, outside)) and len(inside) == len(outside),
        "rollout_without_graph": not any(v.requires_grad for v in inside),
        "gradient_after_rollout_equal": torch.equal(again, gradient),
    }


def after_errors(probe) -> dict:
    """Whether the model is as it was after an error in mid-forward and an interrupt."""
    before, velocity, unchanged = probe.state(), probe.velocity(probe.x), []

    for error in (ValueError, Interrupt):
        calls = []

        def failing_attention(func, *args, calls=calls, error=error, **kwargs):
            calls.append(1)
            if len(calls) == 2:
                raise error
            return attention_pytorch(*args, **kwargs)

        try:
            probe.gradient(probe.differentiable(), failing_attention)
        except (ValueError, Interrupt) as raised:
            unchanged.append(type(raised) is error and probe.state() == before)
            unchanged.append(torch.is_inference_mode_enabled() and not torch.is_grad_enabled())
        unchanged.append(torch.equal(probe.velocity(probe.x), velocity))
    return {"unchanged_after_errors": all(unchanged) and len(unchanged) == 6}


def refuses_multigpu(probe) -> bool:
    """Whether a model with a clone for another GPU is refused, by the model and by its options."""
    patcher, refusals = probe.base.current_patcher, 0
    patcher.set_additional_models("multigpu", [patcher.clone()])
    try:
        with probe.differentiable():
            pass
    except RuntimeError:
        refusals += 1
    finally:
        patcher.remove_additional_models("multigpu")
    try:
        pack.gradient_options({"multigpu_clones": {}})
    except RuntimeError:
        refusals += 1
    return refusals == 2


def saved_bytes(probe, context) -> int:
    """Bytes that live for the backward pass: saved by autograd or held by a checkpoint."""
    storages = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    def living():
        gc.collect()
        return [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]

    with context:
        old = {item.untyped_storage().data_ptr() for item in living()}
        x = probe.x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(note, note_nothing):
            loss = probe.loss(x)
        for item in living():
            note(item)
        del loss
    return sum(size for pointer, size in storages.items() if pointer not in old)


def note_nothing(tensor):
    return tensor


@contextlib.contextmanager
def streamed_weights(network):
    """Hand out every weight through two buffers in turn, which later requests overwrite.

    So do the host's low-VRAM and dynamic VRAM paths (a network may take two weights at once, as
    Z-Image's norms of queries and keys); like theirs, each weight is a new tensor on the buffer, so
    that autograd's version counters see nothing.
    """
    layers = [layer for layer in network.modules() if hasattr(layer, "comfy_cast_weights")]
    with torch.inference_mode(False):
        size = max(2 * w.numel() for layer in layers for w in layer.parameters())
        buffers = [torch.zeros(size), torch.zeros(size)]
    original = comfy.ops.cast_bias_weight

    def overwrite():
        with torch.no_grad(), torch.inference_mode(False):
            for buffer in buffers:
                pack.alias(buffer).fill_(torch.nan)

    def lent(tensor, buffer, start):
        with torch.no_grad(), torch.inference_mode(False), torch._C.DisableTorchFunction():
            part = pack.alias(buffer[start : start + tensor.numel()].view(tensor.shape))
            part.copy_(tensor)
            return pack.alias(part)

    def cast_bias_weight(layer, *args, offloadable=False, **kwargs):
        weight, bias, *stream = original(layer, *args, offloadable=offloadable, **kwargs)
        buffers.reverse()
        weight = lent(weight, buffers[0], 0)
        bias = bias if bias is None else lent(bias, buffers[0], weight.numel())
        return (weight, bias, *stream)

    try:
        comfy.ops.cast_bias_weight = cast_bias_weight
        for layer in layers:
            layer.comfy_cast_weights = True
        yield overwrite
    finally:
        comfy.ops.cast_bias_weight = original
        for layer in layers:
            del layer.comfy_cast_weights


def streaming(probe, velocity, gradient) -> dict:
    """Errors of the gradient when weights are streamed: ours, plain autograd, checkpoints only."""
    with streamed_weights(probe.network) as overwrite:
        streamed = probe.gradient(probe.differentiable(), between=overwrite)
        plain = probe.gradient(probe.plain_autograd())
        blocks = probe.gradient(probe.plain_autograd(blocks=True))
        equal = torch.equal(probe.velocity(probe.x), velocity)
    return {
        "streaming_forward_equal": equal,
        "streaming_error": relative(streamed, gradient),
        "streaming_error_plain": relative(plain, gradient),
        "streaming_error_checkpoints_only": relative(blocks, gradient),
    }


def rope_formulas() -> dict:
    """Relative error of each RoPE operator's formula against autograd through its eager code."""
    eager = importlib.import_module("comfy_kitchen.backends.eager.rope")
    module = sys.modules["flow_ttrl.sampling.hosts.comfy_rope"]
    module.register_rope_formulas()
    draws = torch.Generator().manual_seed(4)
    angles = torch.rand(1, 1, 7, 8, generator=draws) * 6
    rotations = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1)
    rotations = rotations.unflatten(-1, (2, 2))
    errors = {}
    for name in module.OPERATORS:
        operator = getattr(torch.ops.comfy_kitchen, name, None)
        if operator is None:
            continue
        values = [
            torch.randn(2, 3, 5, 16, generator=draws).requires_grad_()
            for _ in range(1 if name.endswith("1") else 2)
        ]
        scales = [1 + 0.3 * torch.randn(16, generator=draws) for _ in values if "rms" in name]

        # The interleaved operators take more positions than there are tokens.
        rotation = rotations[:, :, :5] if "split_half" in name else rotations

        def gradients(function, values=values, rotation=rotation, scales=scales):
            outputs = function(*values, rotation, *scales)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            return torch.cat(torch.autograd.grad(sum(o.sin().sum() for o in outputs), values))

        errors[name] = relative(gradients(operator), gradients(getattr(eager, name)))
    return errors


def main() -> dict:
    torch.set_num_threads(1)
    report = {"rope": rope_formulas()} if not CASES or "rope" in CASES else {}
    float8 = torch.float8_e4m3fn
    known = comfy.supported_models
    models = {
        "sd3": (known.SD3, SD3, torch.float32, GUIDANCE),
        "sd3_float8": (known.SD3, SD3, float8, GUIDANCE),
        "flux": (known.Flux, FLUX, torch.float32, 1.0),
        "flux_float8": (known.Flux, FLUX, float8, 1.0),
        "qwen_image": (known.QwenImage, QWEN_IMAGE, torch.float32, GUIDANCE),
        "qwen_image_float8": (known.QwenImage, QWEN_IMAGE, float8, GUIDANCE),
        "z_image": (known.ZImage, Z_IMAGE, torch.float32, 1.0),
        "z_image_float8": (known.ZImage, Z_IMAGE, float8, 1.0),
    }
    with torch.inference_mode():
        for name, (config_class, unet_config, storage, cfg) in models.items():
            if not CASES or name in CASES:
                patcher = build(config_class, unet_config, storage)
                frames = [1] if name.removesuffix("_float8") in VIDEO else []
                shape = (BATCH, 16, *frames, SIDE, SIDE)
                report[name] = sample_with(patcher, cfg, measure, shape)
    return report


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main()) + "\n")
