"""Pipelines by name: the embedded tiny world, a folder, or a hub id that is in the local cache."""

from __future__ import annotations

import copy
import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..rewards.networks import found_device

TINY = {"tiny-sd3": "sd3", "tiny-flux": "flux"}
"""Models of the embedded tiny world, and their architectures."""
FAMILIES = {"StableDiffusion3Pipeline": "sd3", "FluxPipeline": "flux"}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
QUANTIZE = ("none", "bnb8", "bnb4", "fp8")
OFFLOAD = ("none", "model", "sequential")

KNOWN = {
    "black-forest-labs/FLUX.1-dev": (34, "FLUX.1 [dev] Non-Commercial License"),
    "black-forest-labs/FLUX.1-schnell": (34, "Apache-2.0"),
    "stabilityai/stable-diffusion-3-medium-diffusers": (16, "Stability Community License"),
    "stabilityai/stable-diffusion-3.5-medium": (17, "Stability AI Community License"),
    "stabilityai/stable-diffusion-3.5-large": (28, "Stability AI Community License"),
    "stabilityai/stable-diffusion-3.5-large-turbo": (28, "Stability AI Community License"),
}
"""Download of the diffusers parts in gigabytes, about, and the licence."""


@dataclass(frozen=True)
class Model:
    """A pipeline and what it is loaded with.

    Attributes:
        name: ``tiny-sd3``, ``tiny-flux``, a folder in diffusers' layout, or a hub id.
        dtype: ``auto`` is bf16 on an accelerator and fp32 on a CPU.
        quantize: transformer and T5 encoder by bitsandbytes in 8 or 4 bits, or the transformer's
            weights kept in fp8.
        lora: files or folders of LoRA weights.
    """

    name: str
    dtype: str = "auto"
    quantize: str = "none"
    lora: tuple[str, ...] = ()


@dataclass(frozen=True)
class Machine:
    """Where and how a pipeline runs, which changes no image but by rounding.

    Attributes:
        device: ``auto`` takes an accelerator where there is one.
        offload: ``model`` keeps on the device only the model that is at work, ``sequential`` only
            the layer; rewards are there while they judge.
        vae: ``tiling`` and ``slicing`` of the VAE.
    """

    device: str = "auto"
    offload: str = "none"
    vae: tuple[str, ...] = field(default=())


def family_of(name: str) -> str:
    """The family of a model, "sd3" or "flux", read off its index; nothing is loaded.

    Raises:
        FileNotFoundError: a model that is not here, with size, licence and command.
        ValueError: a pipeline that the search does not run on.
    """
    if name in TINY:
        return TINY[name]
    index = _index(name)
    try:
        kind = json.loads(index.read_text("utf-8")).get("_class_name")
    except ValueError as error:
        raise ValueError(f"expected JSON in {index}, got {error}") from None
    if kind not in FAMILIES:
        raise ValueError(
            f"expected a model whose pipeline is {' or '.join(FAMILIES)}, got {kind} ({index}); "
            "name another"
        )
    return FAMILIES[kind]


def check_model(model: Model, machine: Machine) -> str:
    """Raise for what can be known to be wrong before the model is loaded; its family."""
    device, family = found_device(machine.device), family_of(model.name)
    if machine.offload != "none" and device.type == "cpu":
        raise ValueError(
            f"expected an accelerator to offload from, got device cpu and offload "
            f"{machine.offload}; take --offload none"
        )
    if machine.offload != "none":
        _needs("accelerate", f"offload {machine.offload}")
    if model.lora:
        _needs("peft", "lora")
    for path in model.lora:
        if not Path(path).exists():
            raise FileNotFoundError(f"expected LoRA weights at {path}, got none; mend the path")
    if model.quantize.startswith("bnb"):
        if device.type == "cpu":
            raise ValueError(
                f"expected a GPU for quantize {model.quantize}, got device cpu; take fp8 or none"
            )
        _needs("bitsandbytes", f"quantize {model.quantize}")
        if model.name in TINY:
            raise ValueError(
                f"expected a model that is loaded from files, got {model.name} and quantize "
                f"{model.quantize}; take fp8 or none"
            )
    return family


def load_pipeline(model: Model, machine: Machine = Machine()):
    """The pipeline, placed and ready to be called.

    Raises:
        FileNotFoundError, ImportError, ValueError: see :func:`check_model`.
    """
    check_model(model, machine)
    device = found_device(machine.device)
    usual = "fp32" if device.type == "cpu" else "bf16"
    dtype = DTYPES[usual if model.dtype == "auto" else model.dtype]
    pipe = _tiny(model.name, dtype) if model.name in TINY else _stored(model, dtype)
    for path in model.lora:
        pipe.load_lora_weights(path)
    if model.quantize == "fp8":
        pipe.transformer.enable_layerwise_casting(
            storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype
        )
    for way in machine.vae:
        getattr(pipe.vae, f"enable_{way}")()
    if machine.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif machine.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)
    return pipe


def check_decoder(name: str) -> None:
    """Raise FileNotFoundError for a decoder that is not here."""
    if not Path(name).expanduser().is_dir() and not _cached(name, "config.json"):
        raise FileNotFoundError(
            f"expected a tiny decoder in {name} or the local cache, got none; run: hf download "
            f"{name}"
        )


def load_decoder(name: str, dtype: torch.dtype, device: torch.device):
    """A tiny decoder (``AutoencoderTiny``: taesd3, taef1) from a folder or the local cache."""
    from diffusers import AutoencoderTiny

    check_decoder(name)
    decoder = AutoencoderTiny.from_pretrained(name, local_files_only=True, torch_dtype=dtype)
    return decoder.to(device).eval().requires_grad_(False)


def _tiny(name: str, dtype: torch.dtype):
    from ..world.diffusers import world_pipeline

    pipe = world_pipeline(TINY[name])
    own = {part: copy.deepcopy(getattr(pipe, part)) for part in ("transformer", "vae")}
    pipe.register_modules(**own)  # the process shares the world's
    return pipe if dtype == torch.float32 else pipe.to(dtype)


def _stored(model: Model, dtype: torch.dtype):
    from diffusers import DiffusionPipeline

    options = {}
    if model.quantize.startswith("bnb"):
        options["quantization_config"] = _bitsandbytes(model, dtype)
    return DiffusionPipeline.from_pretrained(
        str(Path(model.name).expanduser()) if Path(model.name).exists() else model.name,
        torch_dtype=dtype,
        local_files_only=True,
        **options,
    )


def _bitsandbytes(model: Model, dtype: torch.dtype):
    from diffusers.quantizers import PipelineQuantizationConfig

    t5 = {"sd3": "text_encoder_3", "flux": "text_encoder_2"}[family_of(model.name)]
    bits = model.quantize.removeprefix("bnb")
    options = {"load_in_8bit": True}
    if bits == "4":
        options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        options["bnb_4bit_compute_dtype"] = dtype
    return PipelineQuantizationConfig(
        quant_backend=f"bitsandbytes_{bits}bit",
        quant_kwargs=options,
        components_to_quantize=["transformer", t5],
    )


def _index(name: str) -> Path:
    """Where the model's index lies."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / "model_index.json").is_file():
            return folder / "model_index.json"
        raise FileNotFoundError(
            f"expected model_index.json in {folder}, diffusers' layout, got no such file; name the "
            "folder that has it"
        )
    if found := _cached(name, "model_index.json"):
        return found
    if name in KNOWN:
        size, licence = KNOWN[name]
        raise FileNotFoundError(
            f"expected {name} in the local cache, got none. It is about {size} GB, under the "
            f"{licence}: accept it at https://huggingface.co/{name}, then run: hf download {name} "
            '--include "*/*" "model_index.json" --exclude "text_encoders/*"'
        )
    raise FileNotFoundError(
        f"expected {', '.join(TINY)}, a folder or a hub id that is in the local cache, got "
        f"{name!r}; for a hub id run: hf download {name}"
    )


def _cached(name: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file)
    except HFValidationError:  # a path, not an id
        return None
    return Path(found) if isinstance(found, str) else None


def _needs(package: str, option: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ImportError(
            f"expected the package {package} for {option}, got none; run: pip install {package}"
        )
