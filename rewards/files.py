"""Files of rewards: where they are looked for, and where they are to be had."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = "reward_models"
HOST_FOLDER = "clip_vision"
"""Where ComfyUI's users have image towers for other uses."""
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Twin:
    """A file of ComfyUI's that holds the tensors of an official one which scoring uses."""

    size: int
    sha256: str


@dataclass(frozen=True)
class File:
    """A file of a reward.

    Attributes:
        path: where it is looked for in a models folder; ``also`` are other names it may have there.
        repo, revision, source: the Hugging Face repository that holds ``source``; where ``repo`` is
            "", ``source`` is an address of its own.
        sha256: "" where none is known.
        twins: files under any name in a folder ``clip_vision`` that serve as well.
    """

    path: str
    source: str
    size: int
    sha256: str
    licence: str
    repo: str = ""
    revision: str = "main"
    also: tuple[str, ...] = ()
    twins: tuple[Twin, ...] = ()

    @property
    def origin(self) -> str:
        """Where it is from, for people."""
        return f"{self.repo} on Hugging Face, {self.source}" if self.repo else self.source

    def find(self, folders: Sequence[Path]) -> Path | None:
        """Where it is: by its names; or a twin by its size, for :meth:`check_twin` to check."""
        own = [folder for folder in folders if folder.name != HOST_FOLDER]
        places = (folder / name for folder in own for name in (self.path, *self.also))
        twins = (
            place
            for folder in folders
            if self.twins and folder.name == HOST_FOLDER
            for place in sorted(folder.rglob("*.safetensors"))
            if place.is_file() and self._twin(place)
        )
        return next((place for place in places if place.is_file()), None) or next(twins, None)

    def _twin(self, place: Path) -> Twin | None:
        size = place.stat().st_size
        return next((twin for twin in self.twins if twin.size == size), None)

    def check_twin(self, found: Path) -> None:
        """Raise ValueError for a file of ``clip_vision`` that is a twin by its size alone."""
        if HOST_FOLDER not in (parent.name for parent in found.parents):
            return
        twin, stat = self._twin(found), found.stat()
        if twin and _checksum_once(found, stat.st_mtime_ns, stat.st_size) != twin.sha256:
            raise ValueError(
                f"expected {found} to be the known file of {twin.size:,} bytes, got another one of "
                f"that size; put {Path(self.path).name} of {self.origin} into {FOLDER}"
            )

    def doubt(self, found: Path) -> str:
        """What is to be said of a file in this one's place that is not it, as its size shows.

        Where a model of other training has the same tensors, nothing in it tells the two apart.
        """
        size = found.stat().st_size
        if size in (self.size, *(twin.size for twin in self.twins)):
            return ""
        return (
            f"{found} has {size:,} bytes where the official {Path(self.path).name} has "
            f"{self.size:,}: if it is of other training, so are its scores"
        )

    def odd(self, folders: Sequence[Path]) -> str:
        """The same of a file under the official name, where that is to be put."""
        found = self.find(folders)
        return self.doubt(found) if found and found.name == Path(self.path).name else ""

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
        sha256: of its large files at ``revision``, by name.
    """

    path: str
    repo: str
    size: int
    licence: str
    revision: str = "main"
    also: tuple[str, ...] = ()
    sha256: tuple[tuple[str, str], ...] = ()

    @property
    def origin(self) -> str:
        """Where it is from, for people."""
        return f"{self.repo} on Hugging Face, the whole repository"

    def find(self, folders: Sequence[Path]) -> Path | None:
        places = (folder / name for folder in folders for name in (self.path, *self.also))
        return next((place for place in places if complete(place)), None)

    def check_twin(self, found: Path) -> None:
        """Nothing: it has none."""

    def doubt(self, found: Path) -> str:
        """Nothing: any model that serves is as good."""
        return ""

    def odd(self, folders: Sequence[Path]) -> str:
        """The same."""
        return ""

    def lacking(self, folders: Sequence[Path]) -> str:
        """What is missing and where it is to be had."""
        where, others = folders[0] / self.path, ", ".join(self.also)
        about = f"about {megabytes(self.size)}, licence: {self.licence}; from {self.origin}"
        return f"{where} ({about}), or one of {others}"


def complete(folder: Path, weights: Sequence[str] = ("model.safetensors",)) -> bool:
    """Whether a Hugging Face folder has its config, and the whole of one of these ``weights``."""
    if not (folder / "config.json").is_file():
        return False
    return any(_all_there(folder, _shards(folder, name)) for name in weights)


def _shards(folder: Path, weights: str) -> set[str]:
    """The files that ``weights`` lie in; none where the index that says so cannot be read."""
    index = folder / f"{weights}.index.json"
    if not index.exists():
        return {weights}
    try:
        return {str(n) for n in json.loads(index.read_text("utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _all_there(folder: Path, names: set[str]) -> bool:
    return bool(names) and all((folder / name).is_file() for name in names)


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@cache
def _checksum_once(path: Path, *stamp: int) -> str:
    return checksum(path)


def existing(folder: Path) -> Path:
    """``folder``, or the nearest folder above it that is there."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"


def given_path(text: str | Path) -> Path:
    """A path as people give it: with quotes around it from a file manager, or from their home."""
    given = Path(text).expanduser()
    bare = str(text).strip()
    if given.exists() or len(bare) < 2 or bare[0] != bare[-1] or bare[0] not in "\"'":
        return given
    return Path(bare[1:-1]).expanduser()


def default_folders() -> list[Path]:
    """Where rewards are looked for outside of ComfyUI.

    ``FLOW_TTRL_MODELS`` if it is set; ComfyUI's models/reward_models, and for twins its
    models/clip_vision, if this pack is one of its custom nodes; or else a folder of the user's
    cache.
    """
    if own := os.environ.get("FLOW_TTRL_MODELS"):
        return [given_path(own)]
    here = Path(__file__).absolute().parents[2]
    if here.name == "custom_nodes":
        return [here.parent / "models" / name for name in (FOLDER, HOST_FOLDER)]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [cache / "flow_ttrl" / FOLDER]


def program() -> str:
    """How to run the command line from where this pack is, in a folder of any name."""
    pack = Path(__file__).absolute().parents[1]
    if pack.parent.name == "custom_nodes":
        return f"{shell_word(sys.executable)} {shell_word(pack)}"
    return "flow-ttrl"


def shell_word(text: str | Path) -> str:
    """``text`` as one word of this system's shell."""
    if os.name == "nt":
        return f'"{text}"' if re.search(r"[\s&^%()]", str(text)) else str(text)
    return shlex.quote(str(text))
