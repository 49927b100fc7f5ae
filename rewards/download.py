"""Fetching a reward's files: only ever when a user asks for it, and never inside a graph."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from .catalogue import entry
from .files import File, Folder, checksum, existing, megabytes

log = logging.getLogger("flow_ttrl")

MODEL_FILES = (".json", ".jinja", ".txt", ".safetensors")


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
    fetched = {File: fetch, Folder: fetch_folder}
    lacking = found.missing([folder, *others])
    return [fetched[type(file)](file, folder, endpoint) for file in lacking]


def fetch_folder(wanted: Folder, folder: Path, endpoint: str | None = None) -> Path:
    """A repository's model into ``folder``, file by file.

    Large ones by the checksums that are known here, or else by the hub's own.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint)
    try:
        info = api.model_info(wanted.repo, revision=wanted.revision, files_metadata=True)
    except Exception as error:  # of whichever network library is underneath
        raise OSError(
            f"expected the hub's list of the files of {wanted.repo}, got {type(error).__name__}: "
            f"{error}; try again"
        ) from error
    hubs = {found.rfilename: found.lfs.sha256 for found in info.siblings if found.lfs}
    for name, known in wanted.sha256:
        if hubs.get(name) != known:
            raise ValueError(
                f"expected {name} of {wanted.repo} with SHA-256 {known}, got a hub that has "
                f"{hubs.get(name, 'none')} of it; nothing was fetched: tell us if it stays so"
            )
    files = [
        File(
            path=f"{wanted.path}/{found.rfilename}",
            source=found.rfilename,
            size=found.size,
            sha256=hubs.get(found.rfilename, ""),
            licence=wanted.licence,
            repo=wanted.repo,
            revision=info.sha,
        )
        for found in info.siblings
        if found.rfilename.endswith(MODEL_FILES) and "/" not in found.rfilename
    ]
    lacking = [file for file in files if file.find([folder]) is None]
    check_space(folder, sum(file.size for file in lacking))
    for file in lacking:
        fetch(file, folder, endpoint)
    return folder / wanted.path


def fetch(file: File, folder: Path, endpoint: str | None = None) -> Path:
    """One file into ``folder``, under its path there, once its checksum is right."""
    target, partial = folder / file.path, folder / f"{file.path}.part"
    had = partial.stat().st_size if partial.exists() else 0
    check_space(folder, file.size - had)
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
    if file.sha256 and digest != file.sha256:
        partial.unlink()
        raise ValueError(
            f"expected {file.source} with SHA-256 {file.sha256}, got {digest}; it was deleted: try "
            "again, and tell us if it stays so"
        )
    os.replace(partial, target)
    return target


def check_space(folder: Path, size: int) -> None:
    """Raise OSError where ``folder`` has no room for ``size`` bytes."""
    free = shutil.disk_usage(existing(folder)).free
    if free < size:
        raise OSError(
            f"expected {megabytes(size)} of space in {folder}, got {megabytes(free)}; make room or "
            "name another folder"
        )


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
