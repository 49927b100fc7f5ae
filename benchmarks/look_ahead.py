"""What a look-ahead knows: its reward against the finished image's, by level and by length.

    python benchmarks/look_ahead.py --arch sd3 --prompts 24

Prints, for look-aheads of some Euler steps from some steps of plain sampling, the correlation of
the verifier's grade with that of the finished image over starts of one prompt, averaged over
development prompts. A look-ahead costs a call an Euler step; of a model with guidance, also of
look-aheads without the negative prompt, whose calls are one forward and not two.
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import Tensor

from flow_ttrl.world.diffusers import start_noise, world_flow
from flow_ttrl.world.prompts import held_out
from flow_ttrl.world.rewards import driven_by

STEPS, STARTS = 20, 16
LOOKS = ((0, 1), (0, 2), (0, 3), (0, 4), (0, 6), (4, 1), (8, 1), (12, 1))
"""(steps sampled before it, Euler steps of the look-ahead)."""


def euler(flow, x: Tensor, stops: list[int]) -> Tensor:
    """``x`` at level ``stops[0]`` by Euler steps to each further level."""
    levels = flow.sigmas.tolist()
    for here, there in zip(stops, stops[1:], strict=False):
        v = flow.velocity(x, levels[here], torch.zeros(len(x), dtype=torch.long))
        x = x + v * (levels[there] - levels[here])
    return x


def correlations(arch: str, prompt: str, seed: int) -> Tensor:
    """Correlation of each of ``LOOKS`` with the finished image's grade over the starts [2, L].

    The second row is of look-aheads without guidance, the same where there is none anyway.
    """
    flow = world_flow(arch, [prompt], driven_by("verifier"), STEPS)
    latents, item = [start_noise(seed, STARTS)], torch.zeros(STARTS, dtype=torch.long)
    for step in range(STEPS):
        latents.append(euler(flow, latents[-1], [step, step + 1]))
    images = [latents[-1]]
    for guided in (flow.call.guided, False):
        flow.call.guided = guided
        for start, length in LOOKS:
            stops = [start + round(k * (STEPS - start) / length) for k in range(length + 1)]
            images.append(euler(flow, latents[start], stops))
    grades = torch.stack([flow.score(flow.decode(x, item), item)["verifier"] for x in images])
    return torch.corrcoef(grades)[0, 1:].unflatten(0, (2, len(LOOKS)))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", choices=("sd3", "flux"), default="sd3")
    parser.add_argument("--prompts", type=int, default=24)
    args = parser.parse_args()
    prompts = held_out("dev", args.prompts)
    found = [correlations(args.arch, prompt, seed) for seed, prompt in enumerate(prompts)]
    mean = torch.stack(found).nanmean(0)
    sys.stdout.write(f"{args.arch}, {len(prompts)} prompts, {STARTS} starts each\n")
    sys.stdout.write("after step  Euler steps  correlation  without guidance\n")
    for (start, length), guided, bare in zip(LOOKS, *mean.tolist(), strict=True):
        sys.stdout.write(f"{start:10d}  {length:11d}  {guided:11.2f}  {bare:16.2f}\n")


if __name__ == "__main__":
    main()
