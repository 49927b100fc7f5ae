"""The paper's published code and ours on the same components, prompts, seeds and settings.

    python benchmarks/versus_paper.py --reference /path/to/Flow-TTRL --world tiny-world --arch flux

The checkout is yours and stays as it is. Each side has a process of its own; they take turns, so
that whatever else the machine does meets both. Theirs runs at its demo's settings; ours at the same
(``--strategy flow_ttrl``) or another strategy at what theirs costs, or at ``--budget``. What had to
be worked around to run theirs at all is listed as ``workarounds``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
from pathlib import Path

import torch
from paper_sides import FILES, Ours, Side, Theirs
from paper_worlds import WORLDS
from quality_report import interval

from flow_ttrl.headless.paper import STEPS
from flow_ttrl.sampling import STRATEGIES
from flow_ttrl.world.prompts import held_out


def serve(kind: type[Side], args, pipe) -> None:
    """A side's process: answers tasks, one at a time."""
    try:
        side = kind(args, args.arch)
        pipe.send({"ready": True})
        while task := pipe.recv():
            pipe.send(side.run(*task))
    except Exception as error:
        pipe.send({"error": f"{type(error).__name__}: {error}"})


class Process:
    """The other end of :func:`serve`."""

    def __init__(self, kind: type[Side], args):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(kind, args, theirs), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self.answer()

    def answer(self) -> dict:
        try:
            told = self.pipe.recv()
        except EOFError:
            raise RuntimeError("a side's process ended without a word; see above") from None
        if "error" in told:
            raise RuntimeError(told["error"])
        return told

    def run(self, *task) -> dict:
        self.pipe.send(task)
        return self.answer()

    def end(self) -> None:
        self.pipe.send(None)
        self.process.join()


def alone(kind: type[Side], args, task: tuple) -> dict:
    """A side's search in a process of its own, for its peak memory.

    Off a card its allocator gives back at once what is freed, which takes time: else what a process
    has grown by tells more of what it was given before than of what it holds.
    """
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # glibc's
    try:
        process = Process(kind, args)
    finally:
        del os.environ["MALLOC_MMAP_THRESHOLD_"]
    told = [process.run(*task) for _ in range(2)]  # the first one loads whatever is loaded late
    process.end()
    return told[-1]


def compare(args) -> dict:
    """Each side alone, for its memory; then both on every task, in turns."""
    tiny_world = args.world == "tiny-world"
    tasks = held_out("dev", args.tasks) if tiny_world else ["a red fox"] * args.tasks
    first = tasks[0], args.seed, False
    by_itself = {"theirs": alone(Theirs, args, first)}
    args.budget = args.budget or by_itself["theirs"]["calls"] / args.steps
    by_itself["ours"] = alone(Ours, args, first)
    memory = {name: row["peak_memory"] for name, row in by_itself.items()}
    if args.memory_only:
        return {"peak_memory": memory | {"ratio": memory["ours"] / memory["theirs"]}}
    theirs, ours = Process(Theirs, args), Process(Ours, args)
    rows: dict[str, list[dict]] = {"theirs": [], "ours": []}
    for number, prompt in enumerate(tasks):
        rows["theirs"].append(theirs.run(prompt, args.seed + number, True))
        rows["ours"].append(ours.run(prompt, args.seed + number, False))
        sys.stderr.write(f"{number + 1} of {len(tasks)}\n")
    for side in (theirs, ours):
        side.end()
    plain = [row["plain"] for row in rows["theirs"]]
    gains = {n: [r["reward"] - p for r, p in zip(v, plain, strict=True)] for n, v in rows.items()}
    told = {name: _summary(values, gains[name]) for name, values in rows.items()}
    for name in told:
        told[name]["peak_memory"] = memory[name]
    ratio = {n: told["ours"][n] / told["theirs"][n] for n in ("calls", "seconds", "peak_memory")}
    return {
        "world": args.world,
        "arch": args.arch,
        "strategy": args.strategy,
        "steps": args.steps,
        "tasks": len(tasks),
        "plain": statistics.mean(plain),
        **told,
        "ratios": {"calls": ratio["calls"], "time": ratio["seconds"]}
        | {"peak_memory": ratio["peak_memory"]},
        "gain_difference": _interval(
            [a - b for a, b in zip(gains["ours"], gains["theirs"], strict=True)]
        ),
        "workarounds": [
            "its rollouts draw from torch's global generator: seeded before each image",
            "its scorer downloads and needs CUDA: given a function with the same answer",
            "its package of rewards is a bare folder: what hides it is taken off the import path",
        ],
    }


def _summary(rows: list[dict], gains: list[float]) -> dict:
    """Means, and the median of the time, since the machine has other work and firsts cost more.

    ``shares`` are of the time, by stage; ``over_floor`` is the time over that of the calls alone.
    """
    names = ("model_calls", "backwards", "calls", "reward")
    found = {name: statistics.mean(row[name] for row in rows) for name in names}
    found["gain"] = statistics.mean(gains)
    found["seconds"] = statistics.median(row["seconds"] for row in rows)
    shares = {
        stage: statistics.median(row["stages"][stage] / row["seconds"] for row in rows)
        for stage in rows[0]["stages"]
    }
    one = shares["model"] * found["seconds"] / found["model_calls"]
    found["over_floor"] = found["seconds"] / (one * found["calls"])
    return found | {"shares": shares}


def _interval(differences: list[float]) -> dict:
    """Mean of paired differences and its 95% interval by bootstrap."""
    low, high = interval(differences)
    return {"mean": statistics.mean(differences), "ci_low": low, "ci_high": high}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", required=True, help="checkout of the published code")
    parser.add_argument("--world", choices=tuple(WORLDS), default="tiny-world")
    parser.add_argument("--arch", choices=tuple(FILES), default="flux")
    parser.add_argument("--strategy", choices=tuple(STRATEGIES), default="flow_ttrl")
    parser.add_argument("--budget", type=float, help="of another strategy; default: theirs costs")
    parser.add_argument("--micro-batch", type=int, default=0, help="candidates of ours at once")
    parser.add_argument("--tasks", type=int, default=20, help="prompts, each from its own seed")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="3 tasks of 10 steps")
    parser.add_argument("--memory-only", action="store_true", help="nothing but peak memory")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not (Path(args.reference) / f"{FILES[args.arch]}.py").is_file():
        sys.stderr.write(
            f"expected {FILES[args.arch]}.py in {args.reference}, got no such file; name a "
            "checkout of the published code\n"
        )
        return 2
    if args.quick:
        args.tasks, args.steps = 3, 10
    try:
        found = compare(args)
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if args.json or args.memory_only:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return 0
    for name in ("theirs", "ours"):
        shares = found[name].pop("shares")
        told = "  ".join(f"{key} {value:.4g}" for key, value in found[name].items())
        sys.stdout.write(f"{name:7s} {told}\n")
        told = "  ".join(f"{stage} {share:.0%}" for stage, share in shares.items())
        sys.stdout.write(f"{name:7s} time: {told}\n")
    ratios = "  ".join(f"{name} {value:.2f}" for name, value in found["ratios"].items())
    gap = found["gain_difference"]
    sys.stdout.write(f"ours / theirs: {ratios}\n")
    sys.stdout.write(
        f"gain, ours - theirs: {gap['mean']:.4f} [{gap['ci_low']:.4f}, {gap['ci_high']:.4f}]\n"
    )
    sys.stdout.write("worked around, to run theirs at all:\n")
    sys.stdout.write("".join(f"  {told}\n" for told in found["workarounds"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
