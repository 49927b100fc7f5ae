"""What a search costs outside model, decoder and rewards, as a share of a run's time.

    python benchmarks/overhead.py --device cpu

Runs every strategy on a flow that takes next to no time and says how long that took beside what its
calls would take at 100 ms each. Noise is drawn on the CPU, whatever the device.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import nullcontext

import torch
from torch import Tensor

from flow_ttrl.sampling import STRATEGIES, Values, make_settings, search, shifted_sigmas

CALL_SECONDS = 0.1
SHAPE = (1, 16, 128, 128)


class Instant:
    """A flow that answers at once; the time that it takes all the same is taken off."""

    forwards_per_call = 1

    def __init__(self, steps: int):
        self.sigmas, self.seconds = shifted_sigmas(steps), 0.0

    def start(self, noise: Tensor, item: Tensor) -> Tensor:
        return noise

    def velocity(self, x: Tensor, sigma: float, item: Tensor) -> Tensor:
        began = time.perf_counter()
        v = 0.5 * x
        self.seconds += time.perf_counter() - began
        return v

    def decode(self, x0: Tensor, item: Tensor) -> Tensor:
        began = time.perf_counter()
        images = x0[:, :3, :8, :8].movedim(1, -1)
        self.seconds += time.perf_counter() - began
        return images

    def score(self, images: Tensor, item: Tensor) -> Values:
        return {"mean": images.mean((1, 2, 3))}

    def totals(self, values: Values, seen: Values) -> Tensor:
        return values["mean"]

    def gradients(self):
        return nullcontext()

    def image_gradients(self):
        return nullcontext()


def measure(strategy: str, budget: float, steps: int, device: str) -> dict:
    settings = make_settings(strategy, budget=budget, keep_better=False)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(device)
    search(Instant(steps), noise, settings)  # once to warm up
    flow, began = Instant(steps), time.perf_counter()
    result = search(flow, noise, settings)
    if device != "cpu":
        torch.cuda.synchronize()
    spent = time.perf_counter() - began - flow.seconds
    run = result.cost.calls * CALL_SECONDS
    return {
        "strategy": strategy,
        "calls": result.cost.calls,
        "seconds": round(spent, 3),
        "share": round(spent / (spent + run), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--budget", type=float, default=6.0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = [measure(s, args.budget, args.steps, args.device) for s in args.strategies]
    if args.json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    sys.stdout.write("strategy          calls  seconds  share of a run at 100 ms a call\n")
    for row in rows:
        sys.stdout.write(
            f"{row['strategy']:16s}  {row['calls']:5d}  {row['seconds']:7.3f}  {row['share']:.2%}\n"
        )


if __name__ == "__main__":
    main()
