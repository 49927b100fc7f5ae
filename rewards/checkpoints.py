"""Checkpoint files, read safely and loaded strictly: a wrong file is named, never half loaded."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .files import program

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
"""What a Hugging Face folder holds, best first."""
_CODE = re.compile("GLOBAL|Unsupported class|unrecognized function")
"""In torch's words for a pickle that wants more than tensors."""
CONFIGS = ("config.json", "open_clip_config.json")
_STATES = ("state_dict", "model_state_dict", "model", "module")
"""What training scripts keep a state dict under."""
_WRAPPERS = ("module.", "_orig_mod.", "model.")
"""What parallel training, compilation and trainers put before every key."""
_SIZES = re.compile(
    r"(hidden|intermediate|image|patch|vocab)_size|num_(hidden_layers|attention_heads|channels)"
    r"|projection_dim|hidden_act|layer_norm_eps|max_position_embeddings|(bos|eos|pad)_token_id"
)
"""What a Hugging Face config says of a network itself."""


class Checkpoint:
    """The tensors of a file or a Hugging Face folder, read as they are asked for.

    Args:
        path: .safetensors, an official .pt/.pth/.bin (a state dict, or one under "state_dict"), or
            a Hugging Face folder.

    Attributes:
        config: a Hugging Face folder's config.json (or open_clip's), where there is one.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: the file is damaged, or holds more than tensors.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        folder = self.path if self.path.is_dir() else self.path.parent
        file = weights_file(self.path)
        if not file.is_file():
            raise FileNotFoundError(f"expected a checkpoint at {file}, got no such file")
        self._readers: dict[str, Callable[[], Tensor]] = {}
        if file.name.endswith(".index.json"):
            for shard in sorted(set(self._json(file)["weight_map"].values())):
                self._add(folder / shard)
        else:
            self._add(file)
        self._unwrap()
        configs = [folder / name for name in CONFIGS if (folder / name).is_file()]
        known = file.name in WEIGHTS and configs
        self.config: dict | None = self._json(configs[0]) if known else None

    def _json(self, path: Path) -> dict:
        try:
            found = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"expected JSON in {path}, got {error}; get the file again") from None
        if not isinstance(found, dict):
            kind = type(found).__name__
            raise ValueError(f"expected a JSON object in {path}, got a {kind}; get the file again")
        return found

    def _add(self, file: Path) -> None:
        if file.suffix == ".safetensors":
            self._readers |= _safetensors(file)
        elif file.suffix in PICKLED:
            self._readers |= _pickled(file)
        else:
            raise ValueError(
                f"expected a .safetensors file, or one of {', '.join(PICKLED)}, got {file.name}; "
                "name the checkpoint itself, or its folder"
            )

    def _unwrap(self) -> None:
        """Take off what stands before every key, and is of no model that is loaded here."""
        while wrapper := next((w for w in _WRAPPERS if self._all_start(w)), None):
            self._readers = {key[len(wrapper) :]: read for key, read in self._readers.items()}

    def _all_start(self, prefix: str) -> bool:
        return bool(self._readers) and all(key.startswith(prefix) for key in self._readers)

    @property
    def keys(self) -> set[str]:
        return set(self._readers)

    def check_keys(self, prefixes: tuple[str, ...], model: str) -> None:
        """Raise ValueError for a key that starts with none of the ``prefixes`` of a ``model``."""
        strays = sorted(key for key in self.keys if not key.startswith(prefixes))
        if strays:
            raise ValueError(
                f"expected a {model} model in Hugging Face's layout in {self.path}, got "
                f"{strays[0]!r} in it; get the file that is named by: {program()} rewards"
            )

    def tensors(
        self, prefixes: tuple[str, ...] = ("",), rename: Callable[[str], str | None] = str
    ) -> dict[str, Tensor]:
        """The tensors whose keys start with one of ``prefixes``, under their ``rename``d keys.

        Args:
            rename: gives a new key, or None for a tensor that is to be left out.
        """
        chosen = {key: rename(key) for key in self._readers if key.startswith(prefixes)}
        return {new: self._readers[key]() for key, new in chosen.items() if new is not None}


def weights_file(path: Path) -> Path:
    """``path``, or the weights of a Hugging Face folder there.

    Raises:
        FileNotFoundError: a folder without weights.
    """
    if not path.is_dir():
        return path
    found = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    if found is None:
        held = ", ".join(sorted(p.name for p in path.iterdir())) or "an empty folder"
        raise FileNotFoundError(f"expected {' or '.join(WEIGHTS)} in {path}, got {held}")
    return found


def _safetensors(file: Path) -> Mapping[str, Callable[[], Tensor]]:
    try:
        opened = safe_open(file, framework="pt")
        # cloned, so that a file that changes on disk does not change a model that is in use
        return {key: lambda key=key: opened.get_tensor(key).clone() for key in opened.keys()}
    except SafetensorError as error:
        raise ValueError(_damaged(file, error)) from None


def _pickled(file: Path) -> Mapping[str, Callable[[], Tensor]]:
    try:
        with file.open("rb") as opened:
            zipped = opened.read(4) == b"PK\x03\x04"
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        told = str(error)
        if not _CODE.search(told):
            raise ValueError(_damaged(file, "it is no checkpoint of torch's")) from None
        raise ValueError(
            f"expected tensors alone in {file}, got a pickle that asks to run code "
            f"({_first_reason(told)}); if you trust where it is from, convert it in an environment "
            "of its own: torch.load(..., weights_only=False), then "
            "safetensors.torch.save_file(state_dict, ...)"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        if "TorchScript" in str(error):
            raise ValueError(
                f"expected a state dict in {file}, got a TorchScript archive; save "
                "torch.jit.load(...).state_dict() with safetensors.torch.save_file"
            ) from None
        told = str(error).splitlines() or ["it is empty or cut off"]
        raise ValueError(_damaged(file, told[0])) from None
    state = found
    if isinstance(found, dict):
        state = next((found[k] for k in _STATES if isinstance(found.get(k), dict)), found)
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        kind = type(state).__name__
        raise ValueError(
            f"expected a dictionary of tensors in {file}, got a {kind}; it is no model"
        )
    if not any(map(torch.is_tensor, state.values())):
        held = ", ".join(list(state)[:5]) or "nothing"
        raise ValueError(
            f"expected a dictionary of tensors in {file}, got one of {held}; save the model's "
            "state_dict() on its own"
        )
    return {
        key: lambda value=value: value.clone()
        for key, value in state.items()
        if torch.is_tensor(value)
    }


def _first_reason(told: str) -> str:
    """The object that a pickle asks for, out of torch's long message."""
    return next(line.strip() for line in told.splitlines() if _CODE.search(line))[:160]


def _damaged(file: Path, why: object) -> str:
    size = file.stat().st_size
    return f"expected a whole checkpoint, got {file} of {size:,} bytes: {why}; get the file again"


def stamp(path: Path) -> tuple:
    """Changes whenever the file, or a file of the folder, or a config beside it does."""
    beside = [path.parent / name for name in CONFIGS] if path.is_file() else []
    files = [path, *beside] if path.is_file() else sorted(path.iterdir())
    stats = [(str(file), file.stat()) for file in files if file.is_file()]
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)


def sizes(config: dict) -> dict:
    """What a Hugging Face ``config`` says of the network itself, its parts' configs included.

    Not how somebody once called it: ``return_dict``, an attention of a package's own, and so on.
    """
    return {
        key: sizes(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if _SIZES.fullmatch(key) or (isinstance(value, dict) and key.endswith("_config"))
    }


def empty(build: Callable[[], nn.Module], path: Path) -> nn.Module:
    """``build()`` without memory for weights, for :func:`fill`.

    Raises:
        ValueError: a config beside ``path`` that the network cannot be built by.
    """
    try:
        with torch.device("meta"):
            return build()
    except Exception as error:  # of whatever the config says that does not fit together
        told = " ".join(str(error).split())[:300]
        raise ValueError(
            f"expected a config of the model beside {path}, got one that makes none "
            f"({type(error).__name__}: {told}); get the official one, or take the config away"
        ) from error


def fill(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> nn.Module:
    """``module`` (from :func:`empty`) with ``tensors`` as its weights, frozen, in float32 or lower.

    Raises:
        ValueError: a tensor that is missing, left over or of another shape, by its name.
    """
    wanted = module.state_dict()
    missing = [key for key in wanted if key not in tensors]
    unexpected = sorted(key for key in tensors if key not in wanted)
    what = f"the {len(wanted)} tensors of {type(module).__name__}"
    mend = "the file is damaged or of another model: get it again"
    if missing:
        raise ValueError(
            f"expected {what} in {path}, got none named {missing[0]!r}"
            f"{_more(missing)}{_also(unexpected)}; {mend}"
        )
    if unexpected:
        raise ValueError(
            f"expected {what} in {path}, got one more: {unexpected[0]!r}{_more(unexpected)}; {mend}"
        )
    for key, tensor in tensors.items():
        if tensor.shape != wanted[key].shape:
            raise ValueError(
                f"expected {key!r} in {path} to be {list(wanted[key].shape)}, got "
                f"{list(tensor.shape)}; {mend}"
            )
        quantised = tensor.is_floating_point() and tensor.element_size() < 2
        if quantised or tensor.is_floating_point() != wanted[key].is_floating_point():
            raise ValueError(
                f"expected {key!r} in {path} to be of {wanted[key].dtype} or the like, got "
                f"{tensor.dtype}; get a file that is not quantised"
            )
    module.load_state_dict(tensors, assign=True)
    _restore_buffers(module)
    return module.eval().requires_grad_(False)


def _more(keys: list[str]) -> str:
    return f" ({len(keys) - 1} more)" if len(keys) > 1 else ""


def _also(keys: list[str]) -> str:
    return f" (it has {keys[0]!r}, which does not belong there)" if keys else ""


def _restore_buffers(module: nn.Module) -> None:
    """Buffers that no checkpoint holds, which building without memory left empty."""
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if not buffer.is_meta:
                continue
            if name == "position_ids":
                value = torch.arange(buffer.shape[-1]).expand(buffer.shape).clone()
            elif name == "attn_mask":
                value = torch.full(buffer.shape, -torch.inf).triu(1)
            else:
                raise NotImplementedError(f"no value known for the buffer {name!r}")
            setattr(owner, name, value)
