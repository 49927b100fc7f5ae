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
from worlds import WORLDS

from flow_ttrl.sampling import STRATEGIES, make_settings, search

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

    def key(self) -> dict:
        return {**asdict(self), "parameters": dict(self.parameters)}


def table_cells(n: int, half: str, seed: int) -> list[Cell]:
    """The committed table: all strategies at 6, the finalists at every budget, few-step slices."""
    main = (("sd3", "verifier"), ("flux", "scorer"))
    rest = (("flux", "verifier"), ("sd3", "scorer"))
    wanted = [(pair, "best_of_n", 1.0, 20) for pair in main]
    wanted += [(pair, s, 6.0, 20) for s in STRATEGIES for pair in main]
    wanted += [(pair, "best_of_n", 1.0, 20) for pair in rest]
    wanted += [(pair, s, 6.0, 20) for s in FINALISTS for pair in rest]
    wanted += [
        (pair, s, 6.0, t)
        for t in (4, 8)
        for s in (*FINALISTS, "drafts", "best_of_n")
        for pair in main
    ]
    wanted += [(pair, s, b, 20) for b in (3.0, 2.0, 4.0) for s in FINALISTS for pair in main]
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
    settings = make_settings(
        cell.strategy, budget=cell.budget, keep_better=False, **dict(cell.parameters)
    )
    result = search(flow, noise, settings, seed=cell.seed)
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
    low, high = interval([float(hit) for hit in hits]) if hits else (None, None)
    return {
        **cell.key(),
        "accuracy": _mean(hits),
        "ci_low": low,
        "ci_high": high,
        "driver_reward": _mean(driver),
        "other_reward": _mean(other),
        "calls": calls,
        "forwards": cost["forwards"],
        "decodes": cost["decodes"],
        "calls_and_decodes": round(calls + cost["decodes"] / 3, 2),
        "octave_energies": [round(e, 4) for e in torch.tensor(energies).mean(0).tolist()],
        "spread": _mean(spreads) if cell.repeats > 1 else None,
        "hits": "".join(str(int(hit)) for hit in hits),
        "rewards": [round(value, 4) for value in driver],
        "seconds": round(time.monotonic() - began, 1),
    }


def _mean(values: list) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def interval(values: list[float], resamples: int = 4000) -> tuple[float, float]:
    """95% bootstrap interval of the mean of ``values``, one a task."""
    generator = torch.Generator().manual_seed(0)
    data = torch.tensor(values, dtype=torch.float64)
    rows = torch.randint(len(data), (resamples, len(data)), generator=generator)
    low, high = data[rows].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return round(low.item(), 4), round(high.item(), 4)


PAIRED = ("world", "arch", "driver", "steps", "n", "half", "seed", "repeats")


def compared(rows: list[dict]) -> list[dict]:
    """Rows with what they say against plain sampling of the same starts, where it is there.

    ``typicality`` is the energy of each octave over plain sampling's; ``diversity`` the spread of a
    task's images over that of its plain ones; ``wins`` the share of samples whose driving reward
    beats plain's, beside which stands (N - 1) / N, best-of-N's where the plain sample is one of
    the N.
    """
    plain = {
        tuple(row[k] for k in PAIRED): row
        for row in rows
        if row["strategy"] == "best_of_n" and row["budget"] == 1
    }
    out = []
    for row in rows:
        base, more = plain.get(tuple(row[k] for k in PAIRED)), {}
        if base and base is not row:
            pairs = zip(row["octave_energies"], base["octave_energies"], strict=True)
            wins = [a > b for a, b in zip(row["rewards"], base["rewards"], strict=True)]
            times = row["budget"]
            more = {
                "typicality": [round(a / b, 3) for a, b in pairs],
                "diversity": row["spread"] and round(row["spread"] / base["spread"], 3),
                "wins": _mean(wins),
                "best_of_n_wins": round((times - 1) / times, 4),
            }
        out.append(row | more)
    return out


def difference(row: dict, rival: dict) -> tuple[float, float, float]:
    """Paired difference of accuracy (of rewards, without verdicts) and its 95% interval."""
    scale = float if row["hits"] else None
    ours, theirs = ([scale(h) for h in r["hits"]] if scale else r["rewards"] for r in (row, rival))
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    return (_mean(gaps), *interval(gaps))


def table(rows: list[dict]) -> str:
    """Rows as text, by world, driver, steps and budget, with steered's lead in each."""
    lines = [
        "world    arch     driver    steps budget strategy         accuracy  [95%]          driver"
        "  other   calls  +dec/3  wins   diversity  steered leads by"
    ]
    order = ("world", "arch", "driver", "steps", "budget")
    for row in sorted(compared(rows), key=lambda r: [str(r[k]).zfill(8) for k in order]):
        same = [r for r in rows if all(r[k] == row[k] for k in (*PAIRED, "budget"))]
        ours = next((r for r in same if r["strategy"] == "steered" and not r["parameters"]), None)
        lead = ""
        if ours and row["strategy"] != "steered":
            gap, low, high = difference(ours, row)
            lead = f"{gap:+.3f} [{low:+.3f}, {high:+.3f}]"
        span = f"[{_short(row['ci_low'])}, {_short(row['ci_high'])}]"
        lines.append(
            f"{row['world']:8s} {row['arch']:8s} {row['driver']:9s} {row['steps']:5d} "
            f"{row['budget']:6.1f} {row['strategy']:16s} {_short(row['accuracy']):8s}  {span:14s} "
            f"{row['driver_reward']:6.3f}  {_short(row['other_reward']):5s}  {row['calls']:6.1f}  "
            f"{row['calls_and_decodes']:6.1f}  {_short(row.get('wins')):5s} "
            f" {_short(row.get('diversity')):9s}  {lead}"
            + (f"  {row['parameters']}" if row["parameters"] else "")
        )
    return "\n".join(lines)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def figure(rows: list[dict], path: Path) -> None:
    """Accuracy against budget at 20 steps, a panel for each architecture and driver."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [row for row in rows if row["steps"] == 20 and row["repeats"] == 1]
    shown = [row for row in shown if row["hits"]]
    pairs = list(dict.fromkeys((row["arch"], row["driver"]) for row in shown))
    drawing = Figure(figsize=(5.2 * len(pairs), 4.4), dpi=110, layout="constrained")
    for panel, (arch, driver) in zip(
        drawing.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=False
    ):
        here = [row for row in shown if (row["arch"], row["driver"]) == (arch, driver)]
        for plain in (r for r in here if r["strategy"] == "best_of_n" and r["budget"] == 1):
            panel.axhline(100 * plain["accuracy"], color="#8a93a3", linestyle=":", linewidth=1)
            panel.annotate("plain", (1, 100 * plain["accuracy"] + 1), color="#8a93a3", fontsize=8)
        for name in dict.fromkeys(_named(row) for row in here):
            own = sorted((r for r in here if _named(r) == name), key=lambda r: r["budget"])
            ours = name == "steered"
            style = {"color": "#0f7b6c", "linewidth": 2.4, "zorder": 3} if ours else {}
            x, y = [r["budget"] for r in own], [100 * r["accuracy"] for r in own]
            panel.plot(x, y, marker="o", markersize=5 if ours else 3.5, label=name, **style)
            if ours:
                low, high = ([100 * r[k] for r in own] for k in ("ci_low", "ci_high"))
                panel.fill_between(x, low, high, color="#0f7b6c", alpha=0.12, linewidth=0)
        panel.set(title=f"{arch}, driven by the {driver}", xlabel="budget, times a plain sample")
        panel.set_ylabel("strict accuracy, %")
        panel.set_xscale("log", base=2)
        ticks = sorted({r["budget"] for r in here})
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(fontsize=7, frameon=False, ncols=2, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(drawing).print_png(path)


def _named(row: dict) -> str:
    return row["strategy"] + (", best settings" if row["parameters"] else "")


def main() -> None:
    args = _arguments()
    out = args.out
    rows = json.loads(out.read_text("utf-8")) if out.exists() else []
    known = {json.dumps(_key(row)) for row in rows}
    cells = _cells(args)
    with multiprocessing.get_context("spawn").Pool(args.jobs, torch.set_num_threads, (1,)) as pool:
        for number, cell in enumerate(cells, 1):
            if json.dumps(_key(cell.key())) in known:
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
    wanted = {json.dumps(_key(cell.key())) for cell in cells}
    shown = [row for row in rows if json.dumps(_key(row)) in wanted]
    if args.figure:
        figure(shown, args.figure)
    sys.stdout.write((json.dumps(compared(shown)) if args.json else table(shown)) + "\n")


def _key(row: dict) -> dict:
    return {name: row[name] for name in Cell.__dataclass_fields__}


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
    parser.add_argument("--quick", action="store_true", help="10 tasks, two cells")
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
