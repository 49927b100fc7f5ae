"""Fetching a reward's files: only ever when a user asks for it, and never inside a graph."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from .catalogue import entry
from .files import File, checksum, existing, megabytes

log = logging.getLogger("flow_ttrl")


def download(
    name: str, folder: Path, endpoint: str | None = None, others: Sequence[Path] = ()
) -> list[Path]:
    """Fetch what a reward still lacks into ``folder``.

    What has come of an interrupted download stays beside the file's place as .part, and the next
    one goes on from there.

    Args:
        endpoint: of the hub, if it is not Hugging Face's own.
        others: folders whose files need not be fetched again.

    Returns:
        The files that were fetched.

    Raises:
        ValueError: no such reward, another file in the place of one, or what came is not the file
            that was to come.
        OSError: no connection, or no space.
    """
    found = entry(name)
    for file in found.files:
        if told := file.odd([folder]):
            raise ValueError(
                f"expected the official file or none, got another: {told}; move it away first"
            )
    return [fetch(file, folder, endpoint) for file in found.missing([folder, *others])]


def fetch(file: File, folder: Path, endpoint: str | None = None) -> Path:
    """One file into ``folder``, under its path there, once its checksum is right."""
    target, partial = folder / file.path, folder / f"{file.path}.part"
    had = partial.stat().st_size if partial.exists() else 0
    free = shutil.disk_usage(existing(folder)).free
    if free < file.size - had:
        raise OSError(
            f"expected {megabytes(file.size - had)} of space in {folder}, got {megabytes(free)}; "
            "make room or name another folder"
        )
    log.info("%s: %s from %s", target, megabytes(file.size), file.origin)
    target.parent.mkdir(parents=True, exist_ok=True)
    if had < file.size:
        try:
            _go_on(file, partial, had, endpoint)
        except Exception as error:  # of whichever network library is underneath
            raise OSError(
                f"expected {file.source} from {file.repo or 'its address'}, got "
                f"{type(error).__name__}: {error}; run it again to go on from what has come"
            ) from error
    digest = checksum(partial)
    if digest != file.sha256:
        partial.unlink()
        raise ValueError(
            f"expected {file.source} with SHA-256 {file.sha256}, got {digest}; it was deleted: try "
            "again, and tell us if it stays so"
        )
    os.replace(partial, target)
    return target


def _go_on(file: File, partial: Path, had: int, endpoint: str | None) -> None:
    """Append to ``partial`` what it lacks."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    if file.repo:
        address = hf_hub_url(file.repo, file.source, revision=file.revision, endpoint=endpoint)
        headers = build_hf_headers()
    else:
        address, headers = file.source, {}
    with partial.open("ab") as opened:
        http_get(
            address,
            opened,
            resume_size=had,
            headers=headers,
            expected_size=file.size,
            displayed_filename=Path(file.path).name,
        )
