"""Pictures of a search: its reward curve, and images side by side."""

from __future__ import annotations

import io
import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_INK, _MUTED, _SEARCH, _PLAIN = "#22262e", "#8a93a3", "#0f7b6c", "#c2571a"


def captioned(images: Tensor, captions: list[str]) -> list[Image.Image]:
    """``images`` [B, H, W, 3] (0..1) as RGB images with a caption of some lines below each."""
    return [_captioned(image, text) for image, text in zip(images, captions, strict=True)]


def _font(size: int):
    try:
        return ImageFont.load_default(size)
    except (ImportError, TypeError):  # Pillow without FreeType, or before 10.1: one size alone
        return ImageFont.load_default()


def _captioned(image: Tensor, text: str) -> Image.Image:
    picture = to_pil(image)
    size = max(12, picture.width // 28)
    font = _font(size)
    lines = text.splitlines()
    margin, step = size // 2, round(size * 1.35)
    canvas = Image.new(
        "RGB", (picture.width, picture.height + step * len(lines) + 2 * margin), "white"
    )
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        place = (margin, picture.height + margin + number * step)
        draw.text(place, line, font=font, fill=_INK if number == 0 else _MUTED)
    return canvas


def reward_curve(report: dict, item: int = 0, size: tuple[int, int] = (720, 440)) -> Image.Image:
    """The look-ahead rewards of one item's search, step by step, as an RGB image.

    Args:
        report: ``SearchResult.report()``.
        item: which image of the batch.
        size: (width, height) in pixels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    groups = _by_level(report, item)
    for level, rewards in groups.items():
        axes.scatter([level] * len(rewards), rewards, s=12, color=_MUTED, alpha=0.5, linewidths=0)
    if groups:
        levels = list(groups)
        means = [np.mean(rewards) for rewards in groups.values()]
        best = [max(rewards) for rewards in groups.values()]
        axes.plot(levels, means, color=_MUTED, lw=1.5, label="candidates' mean")
        axes.plot(levels, best, color=_SEARCH, lw=2, label="best candidate")
    final = report["rewards"][item]
    if final is not None:  # no reward could judge it
        axes.scatter([report["steps"]], [final], s=60, color=_SEARCH, zorder=3)
        axes.annotate(
            f"searched {final:.3f}",
            (report["steps"], final),
            xytext=(-8, 8),
            textcoords="offset points",
            ha="right",
            color=_SEARCH,
            weight="bold",
        )
    plain = report["plain_rewards"]
    if plain and plain[item] is not None:
        axes.axhline(plain[item], color=_PLAIN, lw=1.5, ls="--", label=f"plain {plain[item]:.3f}")
    axes.set_xlim(-0.5, report["steps"] + 0.5)
    axes.margins(y=0.12)
    axes.set_xlabel("sampling step", color=_INK)
    axes.set_ylabel("reward", color=_INK)
    strategy, price = report["settings"]["strategy"], report["cost"]["times_plain"]
    axes.set_title(
        f"Flow-TTRL · {strategy} · {price:g}x a plain sample's calls",
        loc="left",
        fontsize=11,
        color=_INK,
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e9ee", lw=0.8)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", fontsize=9, framealpha=1, edgecolor="none")
    if report["warnings"]:
        lines = [line for text in report["warnings"] for line in textwrap.wrap(text, 100)]
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=8, color=_PLAIN)
    packed = io.BytesIO()
    FigureCanvasAgg(figure).print_png(packed)
    return Image.open(packed).convert("RGB")


def _by_level(report: dict, item: int) -> dict[int, list[float]]:
    """Rewards of one item's look-aheads by the level that their steps came to, in order.

    Of a level that several steps came to, all; without what no reward could judge (None).
    """
    groups: dict[int, list[float]] = {}
    for record in report["search_steps"]:
        judged = [reward for reward in record["rewards"][item] if reward is not None]
        if judged:
            groups[record["index"]] = groups.get(record["index"], []) + judged
    return dict(sorted(groups.items()))


def to_pil(image: Tensor) -> Image.Image:
    """An image [H, W, 3] in 0..1 as PIL."""
    array = (image.detach().float().clamp(0, 1).cpu().numpy() * 255).round()
    return Image.fromarray(array.astype(np.uint8))


def side_by_side(images: list[Image.Image], captions: list[str], scale: int = 1) -> Image.Image:
    """Images of one size next to each other, enlarged ``scale`` times, a caption under each."""
    width, height = images[0].width * scale, images[0].height * scale
    gap, foot = 12, 34
    sheet = Image.new("RGB", (len(images) * (width + gap) + gap, height + gap + foot), "white")
    pen, font = ImageDraw.Draw(sheet), _font(15)
    for n, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = gap + n * (width + gap)
        sheet.paste(image.resize((width, height), Image.Resampling.LANCZOS), (left, gap))
        pen.text((left, gap + height + 8), caption, fill=_INK, font=font)
    return sheet
