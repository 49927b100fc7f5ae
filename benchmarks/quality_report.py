"""What rows of search_quality.py say, beside plain sampling and each other: table and figure."""

from __future__ import annotations

from pathlib import Path

import torch


def mean(values: list) -> float | None:
    """To four digits; None of nothing."""
    return round(sum(values) / len(values), 4) if values else None


def interval(values: list[float], repeats: int = 1, resamples: int = 4000) -> tuple[float, float]:
    """95% bootstrap interval of the mean of ``values``, ``repeats`` a task: tasks are resampled."""
    generator = torch.Generator().manual_seed(0)
    data = torch.tensor(values, dtype=torch.float64).view(-1, repeats).mean(1)
    rows = torch.randint(len(data), (resamples, len(data)), generator=generator)
    low, high = data[rows].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return low.item(), high.item()


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
                "wins": mean(wins),
                "best_of_n_wins": round((times - 1) / times, 4),
            }
        out.append(row | more)
    return out


def difference(row: dict, rival: dict) -> tuple[float, float, float]:
    """Paired difference of accuracy (of rewards, without verdicts) and its 95% interval."""
    name = "hits" if row["hits"] else "rewards"
    gaps = [float(a) - float(b) for a, b in zip(row[name], rival[name], strict=True)]
    low, high = interval(gaps, row["repeats"])
    return mean(gaps), round(low, 4), round(high, 4)


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
    """Accuracy against budget at 20 steps, a panel for each pairing that has several budgets."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [row for row in rows if row["steps"] == 20 and row["repeats"] == 1 and row["hits"]]
    budgets: dict[tuple, set] = {}
    for row in shown:
        budgets.setdefault((row["arch"], row["driver"]), set()).add(row["budget"])
    pairs = [pair for pair, own in budgets.items() if len(own) > 2] or list(budgets)
    names = sorted({_named(row) for row in shown}, key=lambda name: (name != "steered", name))
    colours = dict(zip(names, ("#0f7b6c", *colormaps["tab20"].colors), strict=False))
    drawing = Figure(figsize=(5.2 * len(pairs) + 1.6, 4.4), dpi=110, layout="constrained")
    panels = drawing.subplots(1, len(pairs), squeeze=False)[0]
    for panel, (arch, driver) in zip(panels, pairs, strict=True):
        here = [row for row in shown if (row["arch"], row["driver"]) == (arch, driver)]
        for plain in (r for r in here if r["strategy"] == "best_of_n" and r["budget"] == 1):
            panel.axhline(100 * plain["accuracy"], color="#8a93a3", linestyle=":", linewidth=1)
            panel.annotate("plain", (1, 100 * plain["accuracy"] + 1), color="#8a93a3", fontsize=8)
        for name in (name for name in names if any(_named(row) == name for row in here)):
            own = sorted((r for r in here if _named(r) == name), key=lambda r: r["budget"])
            ours = name == "steered"
            style = {"linewidth": 2.4, "zorder": 3} if ours else {"linewidth": 1.2}
            x, y = [r["budget"] for r in own], [100 * r["accuracy"] for r in own]
            size = 5 if ours else 4
            panel.plot(x, y, "o-", markersize=size, label=name, color=colours[name], **style)
            if ours:
                low, high = ([100 * r[k] for r in own] for k in ("ci_low", "ci_high"))
                panel.fill_between(x, low, high, color=colours[name], alpha=0.12, linewidth=0)
        panel.set(title=f"{arch}, driven by the {driver}", xlabel="budget, times a plain sample")
        panel.set_ylabel("strict accuracy, %")
        panel.set_xscale("log", base=2)
        ticks = sorted(budgets[arch, driver])
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    lines = {line.get_label(): line for panel in panels for line in panel.get_lines()}
    named = [name for name in names if name in lines]
    drawing.legend([lines[n] for n in named], named, loc="outside right center", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(drawing).print_png(path)


def _named(row: dict) -> str:
    return row["strategy"] + (", best settings" if row["parameters"] else "")
