"""Pipelines by name: the embedded tiny world, a folder, or a hub id that is in the local cache."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DiffusionPipeline
from diffusers.quantizers import PipelineQuantizationConfig

from ..rewards.files import complete
from ..rewards.networks import found_device

TINY = {"tiny-sd3": "sd3", "tiny-flux": "flux"}
"""Models of the embedded tiny world, and their architectures."""
FAMILIES = {"StableDiffusion3Pipeline": "sd3", "FluxPipeline": "flux"}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
QUANTIZE = ("none", "bnb8", "bnb4", "fp8")
OFFLOAD = ("none", "model", "sequential")

WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
"""Names of a part's weights; where they are in several files an index beside them says which."""
WITHOUT_WEIGHTS = ("Tokenizer", "Scheduler", "Processor", "Extractor")
"""Words of the classes of parts that have none."""
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
        dtype: ``auto`` is bf16 on an accelerator and fp32 on a CPU; :func:`usual_dtype`.
        quantize: transformer and T5 encoder by bitsandbytes in 8 or 4 bits, or the transformer's
            weights kept in fp8.
        lora: files or folders of LoRA weights.
        vae_tiling: the VAE decodes in overlapping tiles of half its usual side, blended.
    """

    name: str
    dtype: str = "auto"
    quantize: str = "none"
    lora: tuple[str, ...] = ()
    vae_tiling: bool = False


@dataclass(frozen=True)
class Machine:
    """Where and how a pipeline runs, which changes no image but by rounding.

    Attributes:
        device: ``auto`` takes an accelerator where there is one.
        offload: ``model`` keeps on the device only the model that is at work, ``sequential`` only
            the layer; rewards are there while they judge.
        vae_slicing: the VAE decodes images one by one.
    """

    device: str = "auto"
    offload: str = "none"
    vae_slicing: bool = False


def usual_dtype(device: torch.device) -> str:
    """What ``auto`` is on a device."""
    return "fp32" if device.type == "cpu" else "bf16"


def family_of(name: str) -> str:
    """The family of a model, "sd3" or "flux", read off its index; nothing is loaded.

    Raises:
        FileNotFoundError: a model that is not here, or not whole, with size, licence and command.
        ValueError: a pipeline that the search does not run on.
    """
    if name in TINY:
        return TINY[name]
    index = _index(name)
    parts = _config(index)
    kind = parts.pop("_class_name", None)
    if kind not in FAMILIES:
        raise ValueError(
            f"expected a model whose pipeline is {' or '.join(FAMILIES)}, got {kind} ({index}); "
            "name another"
        )
    named = {part: of[-1] for part, of in parts.items() if isinstance(of, list) and any(of)}
    absent = [part for part, of in named.items() if not _is_whole(index.parent / part, str(of))]
    if absent:
        raise FileNotFoundError(
            f"expected {', '.join(absent)} in {index.parent}, got none or a part of it; "
            f"{_download(name)}"
        )
    return FAMILIES[kind]


def check_model(model: Model) -> str:
    """Raise for files and packages that are missing; the model's family. Nothing is loaded."""
    family = family_of(model.name)
    if model.lora:
        _needs("peft", "lora")
    for path in model.lora:
        _check_lora(Path(path))
    for name, known in (("dtype", ("auto", *DTYPES)), ("quantize", QUANTIZE)):
        if getattr(model, name) not in known:
            given = getattr(model, name)
            raise ValueError(f"expected {name} {', '.join(known)}, got {given!r}; take one of them")
    if model.quantize.startswith("bnb") and model.name in TINY:
        raise ValueError(
            f"expected a model that is loaded from files, got {model.name} and quantize "
            f"{model.quantize}; take fp8 or none"
        )
    return family


def longest_side(name: str) -> int | None:
    """Pixels of an image's side that a model has positions for; None where it counts without end.

    Raises:
        OSError, ValueError: its configuration cannot be read.
    """
    if name in TINY:
        from ..world.diffusers import world_pipeline

        pipe = world_pipeline(TINY[name])
        network, scale = dict(pipe.transformer.config), pipe.vae_scale_factor
    else:
        parts = ("transformer", "vae")
        network, vae = (_config(_index(name).parent / part / "config.json") for part in parts)
        scale = 2 ** (len(vae.get("block_out_channels", (1, 1, 1, 1))) - 1)
    positions = network.get("pos_embed_max_size")
    return positions and positions * network.get("patch_size", 1) * scale


def _config(file: Path) -> dict:
    try:
        return dict(json.loads(file.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"expected a JSON object in {file}, got {error}") from None


def check_machine(model: Model, machine: Machine) -> None:
    """Raise for what this machine, where the model is to run, cannot do."""
    device = found_device(machine.device)
    if machine.offload != "none" and device.type == "cpu":
        raise ValueError(
            f"expected an accelerator to offload from, got device cpu and offload "
            f"{machine.offload}; take --offload none"
        )
    if machine.offload != "none":
        _needs("accelerate", f"offload {machine.offload}")
    if model.quantize.startswith("bnb"):
        if device.type == "cpu":
            raise ValueError(
                f"expected a GPU for quantize {model.quantize}, got device cpu; take fp8 or none"
            )
        _needs("bitsandbytes", f"quantize {model.quantize}")


def load_pipeline(model: Model, machine: Machine = Machine()):
    """The pipeline, placed and ready to be called.

    Raises:
        FileNotFoundError, ImportError, ValueError: see :func:`check_model` and
            :func:`check_machine`.
    """
    check_model(model)
    check_machine(model, machine)
    device = found_device(machine.device)
    dtype = DTYPES[usual_dtype(device) if model.dtype == "auto" else model.dtype]
    with _current(device):
        pipe = _tiny(model.name, dtype) if model.name in TINY else _stored(model, dtype)
    _adapt(pipe, model.lora)
    if model.quantize == "fp8":
        pipe.transformer.enable_layerwise_casting(
            storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype
        )
    if model.vae_tiling:
        _tile(pipe.vae)
    if machine.vae_slicing:
        pipe.vae.enable_slicing()
    if machine.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif machine.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)
    return pipe


def check_decoder(name: str) -> None:
    """Raise FileNotFoundError for a decoder that is not here, or not whole."""
    if not _is_whole(_decoder_folder(name), AutoencoderTiny.__name__):
        raise FileNotFoundError(
            f"expected a tiny decoder in {name} or the local cache, got none; run: hf download "
            f"{name}"
        )


def load_decoder(name: str, dtype: torch.dtype, device: torch.device):
    """A tiny decoder (``AutoencoderTiny``: taesd3, taef1) from a folder or the local cache."""
    check_decoder(name)
    decoder = AutoencoderTiny.from_pretrained(_decoder_folder(name), torch_dtype=dtype)
    return decoder.to(device).eval().requires_grad_(False)


def _decoder_folder(name: str) -> Path:
    config = _cached(name, "config.json")
    return config.parent if config else Path(name).expanduser()


def _adapt(pipe, paths: Sequence[str]) -> None:
    """Have every LoRA of ``paths`` take part, each at its whole weight."""
    names = [f"lora_{number}" for number in range(len(paths))]
    for name, path in zip(names, paths, strict=True):
        pipe.load_lora_weights(path, adapter_name=name)
        if not any(name in adapters for adapters in pipe.get_list_adapters().values()):
            raise ValueError(
                f"expected LoRA weights of {type(pipe).__name__}, got {path}, of which nothing "
                "fits it; leave it out"
            )
    if names:  # each that is loaded has put the others aside
        pipe.set_adapters(names)


def _check_lora(path: Path) -> None:
    """Raise FileNotFoundError or ValueError unless one file of weights is there."""
    if path.is_file():
        return
    found = [
        file.name for file in sorted(path.glob("*")) if file.suffix in (".safetensors", ".bin")
    ]
    if not found:
        raise FileNotFoundError(f"expected LoRA weights at {path}, got none; mend the path")
    if len(found) > 1:
        raise ValueError(f"expected one file of LoRA weights, got {', '.join(found)}; name one")


def _tiny(name: str, dtype: torch.dtype):
    from ..world.diffusers import world_pipeline

    pipe = world_pipeline(TINY[name])
    own = {part: copy.deepcopy(getattr(pipe, part)) for part in ("transformer", "vae")}
    pipe.register_modules(**own)  # the process shares the world's
    return pipe if dtype == torch.float32 else pipe.to(dtype)


def _stored(model: Model, dtype: torch.dtype):
    options = {}
    if model.quantize.startswith("bnb"):
        options["quantization_config"] = _bitsandbytes(model, dtype)
    return DiffusionPipeline.from_pretrained(
        str(_index(model.name).parent),
        torch_dtype=dtype,
        local_files_only=True,
        **options,
    )


def _current(device: torch.device) -> AbstractContextManager:
    """The device that libraries without a say in it, such as bitsandbytes, put weights on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _tile(vae) -> None:
    """Half the usual side a tile; as it comes, a VAE tiles larger images than usual only."""
    vae.enable_tiling()
    vae.tile_sample_min_size //= 2
    vae.tile_latent_min_size //= 2


def _bitsandbytes(model: Model, dtype: torch.dtype):
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
    raise FileNotFoundError(
        f"expected {', '.join(TINY)}, a folder or a hub id that is in the local cache, got "
        f"{name!r}; {_download(name)}"
    )


def _download(name: str) -> str:
    """How a model comes here."""
    if name not in KNOWN:
        return f"for a hub id run: hf download {name}"
    size, licence = KNOWN[name]
    return (
        f"it is about {size} GB, under the {licence}: accept it at https://huggingface.co/{name}, "
        f"then run: hf download {name} model_index.json; "  # as options twice, no version takes it
        f'hf download {name} --include "*/*" --exclude "text_encoders/*"'
    )


def _is_whole(part: Path, kind: str) -> bool:
    """Whether a part of a model, of a class called ``kind``, is there with all of its weights."""
    if any(word in kind for word in WITHOUT_WEIGHTS):
        return part.is_dir() and any(file.exists() for file in part.iterdir())
    return complete(part, WEIGHTS)


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
