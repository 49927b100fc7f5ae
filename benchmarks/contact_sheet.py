"""Draws docs/images/contact_sheet.png: the tiny world's data and what its models make of prompts.

    python benchmarks/contact_sheet.py

Columns are held-out prompts of the development half; rows are the drawn data, SD3's and FLUX's
plain samples and the same after a search (the default, driven by the verifier).
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from flow_ttrl.plots import to_pil
from flow_ttrl.sampling import make_settings, search
from flow_ttrl.world.diffusers import start_noise, world_flow
from flow_ttrl.world.draw import draw
from flow_ttrl.world.prompts import held_out, parse
from flow_ttrl.world.rewards import driven_by

TILE, GAP, LABEL, STEPS = 144, 8, 96, 20
PROMPTS = held_out("dev", 8)


@torch.inference_mode()
def rows() -> dict[str, list[Image.Image]]:
    rng = random.Random(0)
    sheet = {"data": [to_pil(draw(parse(prompt), rng)) for prompt in PROMPTS]}
    noise, settings = start_noise(0, len(PROMPTS)), make_settings(keep_better=False)
    items = torch.arange(len(PROMPTS))
    for arch in ("sd3", "flux"):
        flow = world_flow(arch, PROMPTS, driven_by("verifier"), STEPS)
        result = search(flow, noise, settings, baseline=True)
        for name, latents in (("plain", result.plain.latents), ("searched", result.latents)):
            sheet[f"{arch} {name}"] = [to_pil(image) for image in flow.decode(latents, items)]
    return sheet


def main() -> None:
    sheet, step = rows(), TILE + GAP
    font = ImageFont.load_default(13)
    size = (LABEL + len(PROMPTS) * step, len(sheet) * step + 52)
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    for column, prompt in enumerate(PROMPTS):
        words = prompt.split()
        half = (len(words) + 1) // 2 if len(words) > 4 else len(words)
        text = " ".join(words[:half]) + "\n" + " ".join(words[half:])
        pen.multiline_text((LABEL + column * step, 8), text, fill="#22262e", font=font)
    for row, (name, images) in enumerate(sheet.items()):
        top = 48 + row * step
        pen.text((4, top + TILE // 2 - 8), name, fill="#22262e", font=font)
        for column, image in enumerate(images):
            tile = image.resize((TILE, TILE), Image.Resampling.LANCZOS)
            canvas.paste(tile, (LABEL + column * step, top))
    path = Path(__file__).parents[1] / "docs" / "images" / "contact_sheet.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)


if __name__ == "__main__":
    main()
