"""Files of rewards: where they are looked for, and where they are to be had."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = "reward_models"


@dataclass(frozen=True)
class File:
    """A file of a reward.

    Attributes:
        path: where it is looked for in a models folder; ``also`` are other names it may have there.
        repo, revision, source: the Hugging Face repository that holds ``source``; where ``repo`` is
            "", ``source`` is an address of its own.
        sha256: "" where none is known.
    """

    path: str
    source: str
    size: int
    sha256: str
    licence: str
    repo: str = ""
    revision: str = "main"
    also: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        """Where it is from, for people."""
        return f"{self.repo} on Hugging Face, {self.source}" if self.repo else self.source

    def find(self, folders: Sequence[Path]) -> Path | None:
        places = (folder / name for folder in folders for name in (self.path, *self.also))
        return next((place for place in places if place.is_file()), None)

    def odd(self, folders: Sequence[Path]) -> str:
        """What is to be said of a file under the official name that is not the official one."""
        found = self.find(folders)
        if found is None or found.name != Path(self.path).name or self.size == found.stat().st_size:
            return ""
        return (
            f"{found} has {found.stat().st_size:,} bytes where the official file has {self.size:,}"
        )

    def lacking(self, folders: Sequence[Path]) -> str:
        """What is missing and where it is to be had."""
        where = folders[0] / self.path
        return f"{where} ({megabytes(self.size)}, licence: {self.licence}; from {self.origin})"


@dataclass(frozen=True)
class Folder:
    """A model's repository on Hugging Face, wanted whole.

    Attributes:
        path: the folder's name in a models folder; ``also`` are models that serve in its place.
        size: of its tensors, in bytes.
        licence: of ``repo``'s weights.
    """

    path: str
    repo: str
    size: int
    licence: str
    revision: str = "main"
    also: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        """Where it is from, for people."""
        return f"{self.repo} on Hugging Face, the whole repository"

    def find(self, folders: Sequence[Path]) -> Path | None:
        places = (folder / name for folder in folders for name in (self.path, *self.also))
        return next((place for place in places if complete(place)), None)

    def odd(self, folders: Sequence[Path]) -> str:
        """Nothing: any model that serves is as good."""
        return ""

    def lacking(self, folders: Sequence[Path]) -> str:
        """What is missing and where it is to be had."""
        where, others = folders[0] / self.path, ", ".join(self.also)
        about = f"about {megabytes(self.size)}, licence: {self.licence}; from {self.origin}"
        return f"{where} ({about}), or one of {others}"


def complete(folder: Path) -> bool:
    """Whether a Hugging Face folder has its config, and all of its safetensors."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file():
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    return all((folder / name).is_file() for name in ("config.json", *names))


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"


def default_folders() -> list[Path]:
    """Where rewards are looked for outside of ComfyUI.

    ``FLOW_TTRL_MODELS`` if it is set; ComfyUI's models/reward_models if this pack is one of its
    custom nodes; or else a folder of the user's cache.
    """
    if own := os.environ.get("FLOW_TTRL_MODELS"):
        return [Path(own).expanduser()]
    here = Path(__file__).absolute().parents[2]
    if here.name == "custom_nodes":
        return [here.parent / "models" / FOLDER]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [cache / "flow_ttrl" / FOLDER]


def program() -> str:
    """How to run the command line from where this pack is."""
    pack = Path(__file__).absolute().parents[1]
    if pack.parent.name == "custom_nodes":
        return f"(in {pack.parent}) python -m {pack.name}"
    return "flow-ttrl"
