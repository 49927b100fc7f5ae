"""Fetching a reward's files: only ever when a user asks for it, and never inside a graph."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from pathlib import Path

from .catalogue import File, entry, megabytes

log = logging.getLogger("flow_ttrl")

_CHUNK = 1 << 22


def download(name: str, folder: Path, endpoint: str | None = None) -> list[Path]:
    """Fetch what a reward still lacks into ``folder``; an interrupted download goes on.

    Args:
        endpoint: of the hub, if it is not Hugging Face's own.

    Returns:
        The files that were fetched.

    Raises:
        ValueError: no such reward, or what came is not the file that was to come.
        OSError: no connection, or no space.
    """
    found = entry(name)
    return [fetch(file, folder, endpoint) for file in found.missing([folder])]


def fetch(file: File, folder: Path, endpoint: str | None = None) -> Path:
    """One file into ``folder``, under its path there, once its checksum is right."""
    target = folder / file.path
    free = shutil.disk_usage(_existing(folder)).free
    if free < file.size:
        raise OSError(
            f"expected {megabytes(file.size)} of space in {folder}, got {megabytes(free)}; "
            "make room or name another folder"
        )
    log.info("%s: %s from %s", target, megabytes(file.size), file.origin)
    partial = folder / ".downloads" / file.sha256[:16]
    partial.mkdir(parents=True, exist_ok=True)
    got = _from_hub(file, partial, endpoint) if file.repo else _from_address(file, partial)
    digest = checksum(got)
    if digest != file.sha256:
        shutil.rmtree(partial)
        raise ValueError(
            f"expected {file.source} with SHA-256 {file.sha256}, got {digest}; it was deleted: try "
            "again, and tell us if it stays so"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(got, target)
    shutil.rmtree(partial)
    if not any(partial.parent.iterdir()):
        partial.parent.rmdir()
    return target


def _from_hub(file: File, partial: Path, endpoint: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    got = hf_hub_download(
        file.repo, file.source, revision=file.revision, local_dir=partial, endpoint=endpoint
    )
    return Path(got)


def _from_address(file: File, partial: Path) -> Path:
    from torch.hub import download_url_to_file

    got = partial / Path(file.path).name
    download_url_to_file(file.source, str(got))
    return got


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())
