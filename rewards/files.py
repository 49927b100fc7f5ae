"""Files of rewards: where they are looked for, and where they are to be had."""

from __future__ import annotations

import os
import re
import shlex
import sys
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

    def doubt(self, found: Path) -> str:
        """What is to be said of a file in this one's place that is not it, as its size shows.

        Where a model of other training has the same tensors, nothing in it tells the two apart.
        """
        size = found.stat().st_size
        if size == self.size:
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

    ``FLOW_TTRL_MODELS`` if it is set; ComfyUI's models/reward_models if this pack is one of its
    custom nodes; or else a folder of the user's cache.
    """
    if own := os.environ.get("FLOW_TTRL_MODELS"):
        return [given_path(own)]
    here = Path(__file__).absolute().parents[2]
    if here.name == "custom_nodes":
        return [here.parent / "models" / FOLDER]
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
