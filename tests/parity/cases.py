"""The images and prompts that both sides score, written once as 8-bit PNG files.

python cases.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

PROMPTS = (
    "a photo of a red fox in the snow",
    "",
    'a shop sign that says "FRESH BREAD" above a door',
    "a poster with the words \u201cSlow Down\u201d, l\u2019\u00e9t\u00e9 \u00e0 la plage",
    "sunset over the sea \U0001f305\U0001f30a, \u65e5\u672c\u306e\u5ead",
    "An EXTREMELY detailed,   oil painting & charcoal;  it's (very) old... 1,234 pieces!",
    "a long prompt of many words " + " ".join(f"detail number {n}," for n in range(60)),
)


def spectrum(height: int, width: int, seed: int) -> np.ndarray:
    """Noise as bright and as coarse as photographs are, 1/f in every channel."""
    draw = np.random.default_rng(seed).standard_normal((height, width, 3))
    fy, fx = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    fall = 1 / np.maximum(np.hypot(fy, fx), 1 / max(height, width))
    noise = np.fft.ifft2(np.fft.fft2(draw, axes=(0, 1)) * fall[..., None], axes=(0, 1)).real
    return 0.5 + 0.2 * noise / noise.std()


def zone_plate(size: int) -> np.ndarray:
    """Rings of every frequency up to the finest: what a resize without antialiasing ruins."""
    y, x = np.mgrid[:size, :size] - size / 2
    return np.repeat((0.5 + 0.5 * np.cos(np.pi * (x**2 + y**2) / size))[..., None], 3, -1)


def lettering(height: int, width: int) -> np.ndarray:
    image = Image.new("RGB", (width, height), "ivory")
    draw = ImageDraw.Draw(image)
    for line in range(height // 40):
        draw.text((10, 40 * line), "The quick brown fox 0123456789 " * 4, fill="navy")
    return np.asarray(image) / 255


def ramp(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([y / height, x / width, 1 - y / height], -1)


def images() -> dict[str, np.ndarray]:
    """Name to [H, W, 3] in 0..1, clipped when saved."""
    return {
        "photographic noise 1024": spectrum(1024, 1024, 0),
        "photographic noise 768x1344": spectrum(768, 1344, 1),
        "photographic noise 1344x768": spectrum(1344, 768, 2),
        "photographic noise 64": spectrum(64, 64, 3),
        "photographic noise 333x517": spectrum(333, 517, 4),
        "photographic noise 224": spectrum(224, 224, 5),
        "white noise 512": np.random.default_rng(6).random((512, 512, 3)),
        "zone plate 1024": zone_plate(1024),
        "text 512": lettering(512, 512),
        "text 1344x768": lettering(1344, 768),
        "ramp 1216x832": ramp(1216, 832),
        "checkerboard 640": np.indices((640, 640)).sum(0)[..., None] % 2 * np.ones(3),
        "uniform grey 512": np.full((512, 512, 3), 0.5),
        "black 512": np.zeros((512, 512, 3)),
    }


def pairs() -> list[tuple[str, str]]:
    """(image, prompt): every image with one prompt, and the first two with all of them."""
    names = list(images())
    each = [(name, PROMPTS[index % len(PROMPTS)]) for index, name in enumerate(names)]
    return each + [(name, prompt) for name in names[:2] for prompt in PROMPTS]


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in images().items():
        eight_bits = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
        Image.fromarray(eight_bits).save(folder / f"{name}.png")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
