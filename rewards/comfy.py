"""Rewards under ComfyUI: its models folder, and its memory manager for every network."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import folder_paths
import torch
from torch import nn

from .checkpoints import PICKLED
from .files import FOLDER, HOST_FOLDER
from .networks import Network, lower

_EXTENSIONS = {".safetensors", ".txt", *PICKLED}
_ALL = 1e32


class WholePatcher(comfy.model_patcher.ModelPatcher):
    """Moves a network to its device whole, or away whole.

    Short of memory, the host leaves layers behind, which fetch their weights as they run. Only
    layers of its own kind can; these are not.
    """

    def partially_load(self, device_to, extra_memory=0, force_patch_weights=False):
        return super().partially_load(device_to, _ALL, force_patch_weights)

    def partially_unload(self, *args, **kwargs):
        return 0  # so that the host unloads all of it instead


# A patcher of the older kind in a load call can make newer hosts unload a model of the newer kind,
# which loads layers that are not its own whole as it is.
_core = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
_Patcher = WholePatcher if _core is comfy.model_patcher.ModelPatcher else _core


def register_folder() -> None:
    """Make models/reward_models known, beside what extra_model_paths.yaml maps under that name."""
    paths = folder_paths.folder_names_and_paths
    own = str(Path(folder_paths.models_dir) / FOLDER)
    mapped, extensions = paths.get(FOLDER, ([], set()))
    if own not in mapped:
        mapped = [*mapped, own]
    paths[FOLDER] = mapped, set(extensions) | _EXTENSIONS


def folders() -> list[Path]:
    """The folders that hold reward models, the one to put new files into first; then those of image
    towers for other uses, which may be the same."""
    register_folder()
    own = [Path(path) for path in folder_paths.get_folder_paths(FOLDER)]
    host = [Path(path) for path in folder_paths.get_folder_paths(HOST_FOLDER)]
    return own + [folder for folder in host if folder.name == HOST_FOLDER]


class ManagedNetwork(Network):
    """A network that ComfyUI's memory manager moves to its device and away again.

    ``patcher`` goes into the call that loads the diffusion model (``sampling/hosts/comfy.py``), so
    that neither pushes the other out in the middle of a run.
    """

    def __init__(self, module: nn.Module):
        device = comfy.model_management.get_torch_device()
        super().__init__(lower(module, _dtype(device)), device)
        self.patcher = _Patcher(
            self.module,
            load_device=device,
            offload_device=comfy.model_management.text_encoder_offload_device(),
        )

    def bring(self) -> None:
        tensors = chain(self.module.parameters(), self.module.buffers())
        if any(not _same(tensor.device, self.device) for tensor in tensors):
            comfy.model_management.load_models_gpu([self.patcher])


def _dtype(device: torch.device) -> torch.dtype:
    """Half precision where the host finds it right for ``device``."""
    if comfy.model_management.is_device_cpu(device):
        return torch.float32
    if comfy.model_management.should_use_fp16(device):
        return torch.float16
    return torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float32


def _same(a: torch.device, b: torch.device) -> bool:
    return a.type == b.type and (None in (a.index, b.index) or a.index == b.index)


def managed(module: nn.Module) -> Network:
    """Where networks run under ComfyUI."""
    return ManagedNetwork(module)
