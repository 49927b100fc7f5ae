"""Rewards under ComfyUI: its models folder, and its memory manager for every network."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import folder_paths
from torch import Tensor, nn

from .catalogue import FOLDER
from .checkpoints import PICKLED
from .networks import Network, lower, tower_dtype

_EXTENSIONS = {".safetensors", ".txt", *PICKLED}
# A patcher of the older kind in a load call can make newer hosts unload a model of the newer kind.
_Patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)


def register_folder() -> None:
    """Make models/reward_models known, beside what extra_model_paths.yaml maps under that name."""
    paths = folder_paths.folder_names_and_paths
    own = str(Path(folder_paths.models_dir) / FOLDER)
    mapped, extensions = paths.get(FOLDER, ([], set()))
    if own not in mapped:
        mapped = [*mapped, own]
    paths[FOLDER] = mapped, set(extensions) | _EXTENSIONS


def folders() -> list[Path]:
    """The folders that hold reward models, the one to put new files into first."""
    register_folder()
    return [Path(path) for path in folder_paths.get_folder_paths(FOLDER)]


class ManagedNetwork(Network):
    """A network that ComfyUI's memory manager moves to its device and away again.

    It is used whole: ``patcher`` goes into the call that loads the diffusion model (see
    ``sampling/hosts/comfy.py``), so that neither pushes the other out in the middle of a run.
    """

    def __init__(self, module: nn.Module):
        device = comfy.model_management.get_torch_device()
        super().__init__(lower(module, tower_dtype(device)), device)
        self.patcher = _Patcher(
            self.module,
            load_device=device,
            offload_device=comfy.model_management.text_encoder_offload_device(),
        )

    def bring(self) -> None:
        if all(tensor.device == self.device for tensor in _tensors(self.module)):
            return
        comfy.model_management.load_models_gpu([self.patcher])
        # Short of memory, the host leaves layers behind, expecting them to be its own kind, which
        # fetch their weights as they run.
        for tensor in _tensors(self.module):
            if tensor.device != self.device:
                tensor.data = tensor.data.to(self.device)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


def managed(module: nn.Module) -> Network:
    """Where networks run under ComfyUI."""
    return ManagedNetwork(module)
