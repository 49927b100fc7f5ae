"""How good each strategy is for what it costs, against every rival at the same budget.

    python benchmarks/search_quality.py --table            # the committed table; hours, resumable
    python benchmarks/search_quality.py --quick            # a smoke test of three minutes
    python benchmarks/search_quality.py --strategies steered drafts --budgets 6 --half dev

A *cell* is one strategy at one budget on one architecture with one driver. Every finished cell is
written to --out at once and is not run again; the same seed gives every strategy the same plain
sample. Plain sampling is the cell of ``best_of_n`` at budget 1.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import multiprocessing
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from octaves import octave_energies
from quality_report import compared, figure, interval, mean, table
from worlds import WORLDS

from flow_ttrl.sampling import STRATEGIES, SearchSettings, make_settings, search

TABLE = Path(__file__).parents[1] / "docs" / "search_quality.json"
BATCH = 10
"""Tasks run side by side; results do not depend on it beyond rounding."""

FINALISTS = ("steered", "glass", "evolution", "particles")
"""The best four of the development half by the driver's reward (``docs/tuning.json``), which the
table has at every budget."""

BEST = {
    "flow_ttrl": (
        ("gradient", "jacobian_free"),
        ("external_reward_timestep", 0.85),
        ("scale_factor", 2500.0),
    )
}
"""Settings that a strategy does better with than with its own, the published ones, by the same
trials; the table has both."""


@dataclass(frozen=True)
class Cell:
    """One measurement: ``n`` samples, of ``n / repeats`` tasks from that many starts each.

    ``parameters`` are changes to the strategy's own, for tuning.
    """

    world: str
    arch: str
    driver: str
    strategy: str
    budget: float
    steps: int
    n: int
    half: str
    seed: int
    repeats: int = 1
    parameters: tuple[tuple[str, object], ...] = ()

    @property
    def settings(self) -> SearchSettings:
        return make_settings(
            self.strategy, budget=self.budget, keep_better=False, **dict(self.parameters)
        )

    def key(self) -> dict:
        """With all settings, so that a row made by other defaults is another row."""
        settings = json.loads(json.dumps(self.settings.to_json()))
        return {**asdict(self), "parameters": dict(self.parameters), "settings": settings}


def table_cells(n: int, half: str, seed: int) -> list[Cell]:
    """The committed table: all strategies at 6, the finalists at every budget, few-step slices."""
    main = (("sd3", "verifier"), ("flux", "scorer"))
    rest = (("flux", "verifier"), ("sd3", "scorer"))
    simple = ("drafts", "best_of_n")
    wanted = [(pair, "best_of_n", 1.0, 20) for pair in main]
    wanted += [(pair, s, 6.0, 20) for s in STRATEGIES for pair in main]
    wanted += [(pair, "best_of_n", 1.0, 20) for pair in rest]
    wanted += [(pair, s, 6.0, 20) for s in FINALISTS for pair in rest]
    wanted += [(pair, "best_of_n", 1.0, t) for t in (4, 8) for pair in main]
    wanted += [(pair, s, 6.0, t) for t in (4, 8) for s in (*FINALISTS, *simple) for pair in main]
    wanted += [
        (pair, s, b, 20) for b in (3.0, 2.0, 4.0) for s in (*FINALISTS, *simple) for pair in main
    ]
    wanted += [(pair, "best_of_n", 8.0, 20) for pair in main]
    wanted += [(pair, s, 8.0, 20) for s in FINALISTS for pair in main]
    wanted += [(pair, s, 12.0, 20) for s in ("steered", "best_of_n") for pair in main]
    cells = [Cell("tiny", *pair, s, b, t, n, half, seed) for pair, s, b, t in wanted]
    cells += [
        Cell("tiny", *pair, s, 6.0, 20, n, half, seed, parameters=best)
        for s, best in BEST.items()
        for pair in main
    ]
    diverse = [("best_of_n", 1.0), ("best_of_n", 6.0), *((s, 6.0) for s in FINALISTS)]
    cells += [
        Cell("tiny", *pair, s, b, 20, max(n // 15, 1) * 5, half, seed, repeats=5)
        for s, b in diverse
        for pair in main
    ]
    return [cell for cell in dict.fromkeys(cells) if _possible(cell)]


def _possible(cell: Cell) -> bool:
    """The verifier has no gradient to follow."""
    needs = STRATEGIES[cell.strategy].needs_image_gradients
    return not (needs and cell.driver in ("verifier", "mix"))


def _world(name: str):
    if name in WORLDS:
        return WORLDS[name]()
    module, _, factory = name.partition(":")
    return getattr(importlib.import_module(module), factory)()


def run_chunk(job: tuple[Cell, int, int]) -> dict:
    """Samples ``first`` and on of a cell: what each came to, and what they cost together."""
    cell, first, count = job
    world = _world(cell.world)
    tasks = world.tasks(cell.half, math.ceil(cell.n / cell.repeats))
    tasks = [tasks[number // cell.repeats] for number in range(first, first + count)]
    flow = world.flow(cell.arch, tasks, cell.driver, cell.steps)
    noise = world.noise(cell.arch, cell.seed, first, count)
    result = search(flow, noise, cell.settings, seed=cell.seed)
    with torch.no_grad():
        images = flow.decode(result.latents, torch.arange(count))
    hits, driver, other = world.verdicts(cell.arch, images, tasks, cell.driver)
    return {
        "first": first,
        "hits": hits,
        "driver": driver,
        "other": other,
        "cost": asdict(result.cost),
        "energies": octave_energies(result.latents).tolist(),
        "spread": spread(images.reshape(-1, cell.repeats, images[0].numel())).tolist(),
    }


def spread(images: torch.Tensor) -> torch.Tensor:
    """Root mean square difference of two images of a task [tasks], of images [tasks, R, D].

    Zero where there is one image a task.
    """
    pairs = max(images.shape[1] - 1, 1)
    return (2 * images.var(1, correction=0).sum(-1) / images.shape[-1] * (pairs + 1) / pairs).sqrt()


def run_cell(cell: Cell, pool) -> dict:
    """A row of the table."""
    began = time.monotonic()
    batch = max(1, BATCH // cell.repeats) * cell.repeats
    jobs = [(cell, first, min(batch, cell.n - first)) for first in range(0, cell.n, batch)]
    parts = sorted(pool.imap_unordered(run_chunk, jobs), key=lambda part: part["first"])
    hits, driver, other, energies, spreads = (
        [value for part in parts for value in part[name]]
        for name in ("hits", "driver", "other", "energies", "spread")
    )
    cost = {k: sum(part["cost"][k] for part in parts) / cell.n for k in parts[0]["cost"]}
    calls = cost["model_calls"] + 2 * cost["backwards"]
    ends = interval([float(hit) for hit in hits], cell.repeats) if hits else None
    low, high = (round(end, 4) for end in ends) if ends else (None, None)
    return {
        **cell.key(),
        "accuracy": mean(hits),
        "ci_low": low,
        "ci_high": high,
        "driver_reward": mean(driver),
        "other_reward": mean(other),
        "calls": calls,
        "forwards": cost["forwards"],
        "decodes": cost["decodes"],
        "calls_and_decodes": round(calls + cost["decodes"] / 3, 2),
        "octave_energies": [round(e, 4) for e in torch.tensor(energies).mean(0).tolist()],
        "spread": mean(spreads) if cell.repeats > 1 else None,
        "hits": "".join(str(int(hit)) for hit in hits),
        "rewards": [round(value, 4) for value in driver],
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    args = _arguments()
    out = args.out
    rows = json.loads(out.read_text("utf-8")) if out.exists() else []
    known = {_key(row) for row in rows}
    cells = _cells(args)
    with multiprocessing.get_context("spawn").Pool(args.jobs, torch.set_num_threads, (1,)) as pool:
        for number, cell in enumerate(cells, 1):
            if _key(cell.key()) in known:
                continue
            row = run_cell(cell, pool)
            rows.append(row)
            _write(out, rows)
            sys.stderr.write(
                f"{number} of {len(cells)}: {cell.arch} {cell.driver} {cell.steps} steps "
                f"{cell.strategy} {cell.budget:g}x {dict(cell.parameters) or ''} accuracy "
                f"{row['accuracy']} reward {row['driver_reward']} other {row['other_reward']} "
                f"calls {row['calls']:.1f} decodes {row['decodes']:.1f} in {row['seconds']:.0f} s\n"
            )
    wanted = {_key(cell.key()) for cell in cells}
    shown = [row for row in rows if _key(row) in wanted]
    if args.figure:
        figure(shown, args.figure)
    sys.stdout.write((json.dumps(compared(shown)) if args.json else table(shown)) + "\n")


def _key(row: dict) -> str:
    names = (*Cell.__dataclass_fields__, "settings")
    return json.dumps({name: row[name] for name in names}, sort_keys=True)


def _write(path: Path, rows: list[dict]) -> None:
    """Whole or not at all, a row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    lines = ",\n".join(json.dumps(row) for row in rows)
    partial.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    partial.replace(path)


def _cells(args) -> list[Cell]:
    if args.table:
        return table_cells(args.prompts or 150, args.half or "test", args.seed)
    world = _world(args.world)
    pairs = [
        (arch, driver)
        for arch, driver in world.cells
        if (not args.arch or arch in args.arch) and (not args.driver or driver in args.driver)
    ]
    if args.quick:
        pairs = pairs[:2]
    n = args.prompts or (10 if args.quick else 60)
    if args.repeats < 1 or n % args.repeats:
        raise SystemExit(f"expected --prompts to be a multiple of --repeats; got {n}")
    parameters = tuple(json.loads(args.parameters).items()) if args.parameters else ()
    parameters = tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in parameters)
    cells = [
        Cell(
            *(args.world, arch, driver, strategy, budget, steps, n, args.half or "dev", args.seed),
            repeats=args.repeats,
        )
        for arch, driver in pairs
        for steps in args.steps
        for strategy, budget in [
            ("best_of_n", 1.0),
            *((s, b) for b in args.budgets for s in args.strategies),
        ]
    ]
    if parameters:
        own = {f for f in STRATEGIES[args.strategies[0]].parameters.__dataclass_fields__}
        if len(args.strategies) > 1 or not {name for name, _ in parameters} <= own:
            raise SystemExit("--parameters goes with one strategy that has them")
        cells = [
            Cell(**{**asdict(c), "parameters": parameters}) if c.budget > 1 else c for c in cells
        ]
    return [cell for cell in dict.fromkeys(cells) if _possible(cell)]


def _arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="all cells of the committed table")
    parser.add_argument("--quick", action="store_true", help="10 tasks, on two pairings")
    parser.add_argument("--world", default="tiny", help="tiny, gaussian or package.module:factory")
    parser.add_argument(
        "--strategies", nargs="+", default=["steered", "drafts"], choices=STRATEGIES
    )
    parser.add_argument("--budgets", nargs="+", type=float, default=[6.0])
    parser.add_argument("--steps", nargs="+", type=int, default=[20])
    parser.add_argument("--arch", nargs="+")
    parser.add_argument("--driver", nargs="+")
    parser.add_argument("--half", choices=("dev", "test"), help="default: dev; --table: test")
    parser.add_argument("--prompts", type=int, metavar="N", help="samples; 60, --table 150")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=1, help="starts a task, for its diversity")
    parser.add_argument("--parameters", metavar="JSON", help="changes to the strategy's own")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--out", type=Path, help="default: docs/search_quality.json for --table")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="draw accuracy against budget")
    parser.add_argument("--json", action="store_true", help="the rows as JSON")
    args = parser.parse_args()
    if args.out is None:
        args.out = TABLE if args.table else Path("out") / "search_quality.json"
    return args


if __name__ == "__main__":
    main()
