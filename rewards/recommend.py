"""Which reward to begin with, by what this machine has."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .catalogue import CATALOGUE
from .files import existing, megabytes, program

PEAKS = {
    "imagereward": 4.4e9,
    "hps": 7.0e9,
    "pickscore": 6.2e9,
    "clipscore": 3.3e9,
    "aesthetic_v2_5": 4.3e9,
    "aesthetic": 3.3e9,
}
"""The order in which to try them, and bytes of memory at the most while they load (measured, see
docs/rewards.md): people's preference and the prompt first, then the prompt, then beauty alone."""
_NEARLY = 50e6
"""A download of fewer bytes is nothing: what lacks so little comes first."""
_SPARE = 1e9
"""Bytes of disk that a download leaves free."""


@dataclass(frozen=True)
class Recommendation:
    """A reward to begin with, why, and what to run; no name where none fits."""

    reward: str | None
    why: str
    command: str

    def report(self) -> dict:
        """As a JSON object."""
        return asdict(self)


def recommend(
    folders: Sequence[Path], memory: float | None = None, disk: float | None = None
) -> Recommendation:
    """The first reward to try.

    One that is there, before one that lacks next to nothing, before one that has to be downloaded;
    of each the first of ``PEAKS`` that fits.

    Args:
        memory, disk: bytes that are free; by default this machine's, on the disk of ``folders[0]``.
    """
    memory = free_memory() if memory is None else memory
    disk = shutil.disk_usage(existing(folders[0])).free if disk is None else disk
    lacking = {name: _lacking(name, folders) for name in PEAKS}
    fits = [name for name, peak in PEAKS.items() if memory is None or peak <= memory]
    ready = [name for name in fits if not lacking[name]]
    if ready:
        how = f'{program()} score IMAGE --prompt "..." --reward {ready[0]}'
        return Recommendation(ready[0], "it is ready", how)
    room = [name for name in fits if lacking[name] <= max(disk - _SPARE, 0)]
    first = next((name for name in room if lacking[name] <= _NEARLY), next(iter(room), None))
    if first is None:
        known = "" if memory is None else f"{megabytes(int(memory))} of memory and "
        least, bytes_ = min(PEAKS.items(), key=lambda item: item[1])
        return Recommendation(
            None,
            f"no learned reward fits into {known}{megabytes(int(disk))} of disk; {least} takes "
            f"{megabytes(int(bytes_))} of memory and {megabytes(lacking[least])} of disk",
            f"{program()} score IMAGE --reward contrast",
        )
    return Recommendation(
        first,
        f"{megabytes(lacking[first])} to fetch, {megabytes(int(PEAKS[first]))} of memory at most",
        f"{program()} rewards --download {first}",
    )


def _lacking(name: str, folders: Sequence[Path]) -> int:
    return sum(file.size for file in CATALOGUE[name].missing(folders))


def free_memory() -> float | None:
    """Bytes of memory for a new program; all that a POSIX machine has, or None where not known."""
    if importlib.util.find_spec("psutil"):
        return importlib.import_module("psutil").virtual_memory().available
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
