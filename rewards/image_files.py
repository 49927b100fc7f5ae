"""Image files to tensors, as they look when they are shown."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

log = logging.getLogger("flow_ttrl")

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF's orientation."""
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
"""TIFF's tags."""
_SIGNED = 2


def read_image(path: Path) -> Tensor:
    """An image file as [1, H, W, 3] in 0..1: upright, on white where it is transparent.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, no image, too large, or of numbers without a range.
    """
    return torch.from_numpy(_opened(path, lambda image: _rgb(_upright(image, path))))[None]


def check_image_file(path: Path) -> None:
    """Raise as :func:`read_image` does for what the head of the file shows."""
    _opened(path, lambda image: None)


def _opened(path: Path, use):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damage that matters raises
            with Image.open(path) as image:
                return use(image)
    except FileNotFoundError:
        told = f"expected an image at {path}, got no such file; check the path"
        raise FileNotFoundError(told) from None
    except Image.DecompressionBombError:
        most = 2 * Image.MAX_IMAGE_PIXELS / 1e6
        told = f"expected an image of at most {most:.0f} megapixels, got more: {path}; make it"
        raise ValueError(f"{told} smaller") from None
    except Exception as error:  # of whichever decoder came upon the damage
        why = str(error).splitlines()[:1] or [type(error).__name__]
        told = f"expected a whole image file, got {path} ({why[0]}); name a PNG, JPEG or the like"
        raise ValueError(told) from None


def _upright(image: Image.Image, path: Path) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception as error:  # of whichever reader came upon the damage; the pixels are whole
        log.warning("%s: its EXIF data is damaged (%s), so it is not turned", path, error)
        turn = None
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> np.ndarray:
    """[H, W, 3] in 0..1."""
    if image.mode.startswith("I"):
        return np.repeat(_grey(image)[..., None], 3, -1)
    if image.mode == "F":
        raise ValueError("it holds floating-point numbers without a range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"), dtype=np.float32) / 255


def _grey(image: Image.Image) -> np.ndarray:
    """[H, W] in 0..1 of integers beyond 8 bits: as many as a TIFF says, or else 16."""
    tags = getattr(image, "tag_v2", {})
    bits, signed = tags.get(_BITS, (16,))[0], tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED
    levels = np.asarray(image).astype(np.int64)
    if not signed:
        levels %= 1 << bits  # Pillow holds 32 bits with a sign
    grey = levels / ((1 << (bits - signed)) - 1)
    if tags.get(_PHOTOMETRIC) == 0:  # white is 0
        grey = 1 - grey
    if "transparency" in image.info:
        grey[levels == image.info["transparency"]] = 1
    return grey.clip(0, 1).astype(np.float32)
