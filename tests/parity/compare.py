"""Our side: the same files and images through this pack, and the table of differences.

python tests/parity/compare.py FOLDER [TABLE]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from cases import pairs
from PIL import Image

from flow_ttrl.rewards import load_reward
from flow_ttrl.rewards.networks import on_device

TOLERANCE = 1e-4
VARIANTS = ("hps", "clipscore", "image_similarity")
"""Rewards that the paper's code preprocesses in another way."""


def opened(folder: Path, name: str) -> torch.Tensor:
    """An image as ComfyUI's LoadImage gives it: [1, H, W, 3], 8 bits over 255."""
    pixels = np.asarray(Image.open(folder / "images" / f"{name}.png").convert("RGB"))
    return torch.from_numpy(pixels.astype(np.float32) / 255)[None]


def scores(folder: Path, name: str, preprocess: str = "official") -> list[float]:
    reference = opened(folder, pairs()[0][0]) if name == "image_similarity" else None
    reward = load_reward(
        name,
        folders=[folder / "reward_models"],
        place=on_device("cpu"),
        preprocess=preprocess,
        reference=reference,
    )
    with torch.inference_mode():
        return [reward.score(opened(folder, image), [text]).item() for image, text in pairs()]


def table(folder: Path) -> tuple[str, bool]:
    official = json.loads((folder / "official.json").read_text())
    lines = [
        "| reward | images x prompts | official scores: range (std) | largest difference | "
        'with `preprocess="paper"` |',
        "|---|---|---|---|---|",
    ]
    agreed = True
    for name, wanted in official.items():
        wanted = np.array(wanted)
        off = np.abs(np.array(scores(folder, name)) - wanted).max()
        agreed &= bool(off <= TOLERANCE)
        paper = "-"
        if name in VARIANTS:
            shift = np.abs(np.array(scores(folder, name, "paper")) - wanted).max()
            paper = f"off by up to {shift:.2g}" if shift > TOLERANCE else "the same"
        lines.append(
            f"| `{name}` | {len(wanted)} | {wanted.min():.4f} .. {wanted.max():.4f} "
            f"({wanted.std():.4f}) | {off:.1e} | {paper} |"
        )
        sys.stderr.write(lines[-1] + "\n")
    return "\n".join(lines), agreed


if __name__ == "__main__":
    printed, good = table(Path(sys.argv[1]))
    sys.stdout.write(printed + "\n")
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(printed + "\n")
    if not good:
        sys.exit(f"expected every difference within {TOLERANCE}")
