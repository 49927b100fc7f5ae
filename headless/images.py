"""Files of images: written whole or not at all, with what made them inside."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path

from PIL import Image, PngImagePlugin, UnidentifiedImageError

KEY = "flow_ttrl"
"""Of the PNG's text that holds what made it, as JSON."""
_BYTES_A_PIXEL = 2
"""Of a photograph in a PNG, about; it has three before they are packed."""


def write_image(path: Path, image: Image.Image, made: dict) -> None:
    """A PNG at ``path``, under another name until it is whole.

    Args:
        made: what made it, kept inside.

    Raises:
        OSError: no room, or no right to write; nothing is left behind.
    """
    text = PngImagePlugin.PngInfo()
    text.add_itxt(KEY, json.dumps(made))
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # of this writer alone
    try:
        with partial.open("wb") as opened:
            image.save(opened, "PNG", pnginfo=text)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise OSError(
            f"expected to write {path}, got {error.strerror or error}; what was finished before "
            "stays, and the same command goes on from there"
        ) from error


def read_made(path: Path) -> dict:
    """What made the image at ``path``.

    Raises:
        OSError, ValueError: no image, or one of another program.
    """
    try:
        with Image.open(path) as opened:
            text = opened.info.get(KEY)
            opened.verify()
    except FileNotFoundError:
        raise FileNotFoundError(f"expected an image at {path}, got no such file") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(f"expected a whole image at {path}, got {error}") from None
    if text is None:
        raise ValueError(f"expected an image made by flow-ttrl generate, got {path}, which says no")
    try:
        made = json.loads(text)
    except ValueError:
        made = None
    if not isinstance(made, dict):
        raise ValueError(f"expected what made {path} as a JSON object in it, got another text")
    return made


def prepare_folder(folder: Path, images: int, pixels: int) -> None:
    """Make ``folder`` and see that it can be written to and holds ``images`` more.

    Raises:
        OSError: it cannot, or does not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}.part"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"expected a folder at {folder} that can be written to, got {error.strerror}; name "
            "another"
        ) from error
    need, free = images * pixels * _BYTES_A_PIXEL, shutil.disk_usage(folder).free
    if free < need:
        raise OSError(
            f"expected {need / 1e6:,.0f} MB of room in {folder} for {images} images, got "
            f"{free / 1e6:,.0f} MB; make room or name another folder"
        )
