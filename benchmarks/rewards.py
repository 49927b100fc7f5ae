"""Scores per second and peak memory of each reward: this pack's way against the paper's code's.

    python benchmarks/rewards.py --models out/parity/reward_models [--device cuda]

Both ways run the same network with the same weights on images of 1024 px that a decoder has just
left on the device. Ours scores the batch as it is, with the prompt encoded once before. The paper's
code takes the images to the CPU, makes each a PIL image, lets PIL resize it, and runs image and
prompt through the network one at a time. Each figure is from a process of its own; peak memory is
that of the device, or of the process on a CPU, weights and images included. "Pixels" is what of it
is preprocessing, for one image.

``make parity`` leaves files of the true sizes (with random weights) in out/parity/reward_models.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from flow_ttrl.rewards import Reward, RewardMix, load_reward
from flow_ttrl.rewards.networks import on_device
from flow_ttrl.rewards.preprocess import CLIP_MEAN, CLIP_STD

REWARDS = ("hps", "imagereward", "pickscore", "clipscore", "aesthetic", "aesthetic_v2_5")
BATCHES = (1, 6, 24)
SIDE = 1024
PROMPT = "a photo of a red fox in the snow, with a sign that says hello"


def pil_pixels(images: Tensor, device: torch.device, side: int, squash: bool) -> Tensor:
    """[1, H, W, 3] by way of a PIL image, as official preprocessing goes."""
    array = (images[0] * 255).round().byte().cpu().numpy()
    size = (side, side) if squash else side
    steps = [
        transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(side),
        transforms.ToTensor(),
        transforms.Normalize((0.5,) * 3, (0.5,) * 3)
        if squash
        else transforms.Normalize(CLIP_MEAN, CLIP_STD),
    ]
    return transforms.Compose(steps)(Image.fromarray(array))[None].to(device)


def as_the_paper(reward: Reward) -> None:
    """Have ``reward`` preprocess with PIL."""
    holder = reward if hasattr(reward, "pixels") else reward.tower
    device = reward.networks[0].device
    side = holder.pixels.keywords["size"]
    squash = reward.name == "aesthetic_v2_5"
    holder.pixels = partial(pil_pixels, device=device, side=side, squash=squash)


def one_at_a_time(reward: Reward, images: Tensor) -> Tensor:
    scores = []
    for image in images.split(1):
        if hasattr(reward, "text"):
            reward.text._known.clear()
        scores.append(reward.score(image, [PROMPT]))
    return torch.cat(scores)


def measure(name: str, way: str, batch: int, models: Path, device: str) -> dict:
    """One figure; the first call is not timed."""
    reward = load_reward(name, folders=[models], place=on_device(device))
    on = reward.networks[0].device
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(batch, SIDE, SIDE, 3, generator=draw).to(on)
    judge = RewardMix(((reward, 1.0),)).judge([PROMPT])
    if way == "paper":
        as_the_paper(reward)
        run = partial(one_at_a_time, reward, images)
    else:
        run = partial(judge.score, images)
    with torch.inference_mode():
        rounds = 1 if on.type == "cpu" else 5
        if on.type == "cuda":
            run()
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        else:
            reward.score(images[:1], [PROMPT])
        began = time.perf_counter()
        for _ in range(rounds):
            run()
        if on.type == "cuda":
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - began) / rounds
    peak = (
        torch.cuda.max_memory_allocated()
        if on.type == "cuda"
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    return {"per_second": batch / seconds, "peak": peak, "pixels": pixels_seconds(reward, images)}


def pixels_seconds(reward: Reward, images: Tensor) -> float:
    """Seconds of preprocessing an image: the least of five, the first not among them."""
    pixels = (reward if hasattr(reward, "pixels") else reward.tower).pixels
    took = []
    with torch.inference_mode():
        for _ in range(6):
            began = time.perf_counter()
            pixels(images[:1])
            if images.is_cuda:
                torch.cuda.synchronize()
            took.append(time.perf_counter() - began)
    return min(took[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rewards", nargs="+", default=list(REWARDS), choices=REWARDS)
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--one", nargs=3, metavar=("NAME", "WAY", "BATCH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        name, way, batch = args.one
        found = measure(name, way, int(batch), args.models, args.device)
        sys.stdout.write(json.dumps(found))
        return
    sys.stdout.write(
        "| reward | batch | scores a second: ours / paper's | ratio | peak GB: ours / paper's "
        "| pixels, ms: ours / paper's |\n|---|---|---|---|---|---|\n"
    )
    for name in args.rewards:
        for batch in args.batches:
            ours, paper = (
                _in_a_process(name, way, batch, args.models, args.device)
                for way in ("ours", "paper")
            )
            rates = ours["per_second"], paper["per_second"]
            peaks = ours["peak"] / 1e9, paper["peak"] / 1e9
            pixels = 1e3 * ours["pixels"], 1e3 * paper["pixels"]
            sys.stdout.write(
                f"| `{name}` | {batch} | {rates[0]:.3g} / {rates[1]:.3g} | "
                f"{np.divide(*rates):.2f} | {peaks[0]:.2f} / {peaks[1]:.2f} | "
                f"{pixels[0]:.3g} / {pixels[1]:.3g} |\n"
            )
            sys.stdout.flush()


def _in_a_process(name: str, way: str, batch: int, models: Path, device: str) -> dict:
    command = [sys.executable, __file__, "--models", str(models), "--device", device]
    command += ["--one", name, way, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
