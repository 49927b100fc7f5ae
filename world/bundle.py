"""The bundled weights: where they lie, and reading them as float32."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent / "weights"
SHIFT = 3.0
"""Shift of the noise schedule that the flow models are sampled with, in either host."""
PARTS = ("vae", "sd3", "flux", "scorer")


def load(part: str) -> dict[str, Tensor]:
    """State dict of ``part`` ("vae", "sd3", "flux" or "scorer") in float32.

    Raises:
        FileNotFoundError: the file is missing from the checkout.
    """
    path = FOLDER / f"{part}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"expected the tiny world's weights at {path}, found no such file; they belong to the "
            "repository: check it out again, whole"
        )
    return {name: tensor.float() for name, tensor in load_file(path).items()}
