"""Pictures of the results: ratios beside what is asked, and curves of growth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator

from refnet.bench.contestants import CPU, CUDA, SPECIFICATION, TORCHVISION
from refnet.bench.run import Growth, Ratio, Report, Result, with_threads
from refnet.draw import png_bytes

RATIOS, GROWTH = "ratios.png", "growth.png"
INK, FAINT, GROUND = "#1f2430", "#c9ced8", "#ffffff"
# after Okabe and Ito 2008, told apart by the colour-blind as well
KEPT, MISSED, REPORTED, ASKED = "#0072b2", "#d55e00", "#8a93a3", "#1f2430"
COLORS = {CPU: "#0072b2", TORCHVISION: "#d55e00", SPECIFICATION: "#009e73", CUDA: "#a5478a"}
VERDICTS = {KEPT: "as asked", MISSED: "missed", REPORTED: "nothing asked"}
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20)
SHADES = (1.0, 0.55)  # of the bars of fewer and of more threads


def write_charts(report: Report, folder: Path) -> list[Path]:
    """Write those charts for which there are results."""
    written = []
    rows = [(r, ratio) for r in report.results for ratio in r.ratios if ratio.peer != SPECIFICATION]
    if any(ratio.bar for _, ratio in rows):
        rows = [(result, ratio) for result, ratio in rows if ratio.bar]  # the table has the others, too
    for name, figure in (
        (RATIOS, ratio_chart(rows) if rows else None),
        (GROWTH, growth_chart(report.growths) if report.growths else None),
    ):
        if figure is not None:
            (folder / name).write_bytes(png_bytes(figure, dpi=130))
            written.append(folder / name)
    return written


def ratio_chart(rows: Sequence[tuple[Result, Ratio]]) -> Figure:
    """A bar for each comparison and number of threads, on a logarithmic axis; below 1 refnet is quicker or smaller."""
    labels = list(dict.fromkeys((result.subject, ratio.peer) for result, ratio in rows))
    threads = sorted({result.threads for result, _ in rows})
    figure = Figure(figsize=(10, 1.5 + 0.3 * len(labels)), layout="constrained", facecolor=GROUND)
    axes = figure.subplots()
    height, used = 0.76 / len(threads), set()
    for result, ratio in rows:
        place, shade = labels.index((result.subject, ratio.peer)), threads.index(result.threads)
        y = place + (shade - (len(threads) - 1) / 2) * height
        color = REPORTED if ratio.bar is None else KEPT if ratio.kept else MISSED
        used.add(color)
        axes.barh(
            y, ratio.value - 1, left=1, height=0.92 * height, color=color,
            alpha=SHADES[min(shade, len(SHADES) - 1)], linewidth=0,
        )  # fmt: skip
        axes.plot([ratio.low, ratio.high], [y, y], color=INK, linewidth=1.0, solid_capstyle="butt")
        side = min(ratio.low, ratio.value) if ratio.value < 1 else max(ratio.high, ratio.value)
        axes.annotate(
            f"{ratio.value:.2f}", (side, y), xytext=(-4 if ratio.value < 1 else 4, 0), textcoords="offset points",
            ha="right" if ratio.value < 1 else "left", va="center", fontsize=7, color=INK,
            bbox={"boxstyle": "square,pad=0.15", "facecolor": GROUND, "linewidth": 0}, zorder=5,
        )  # fmt: skip
        if ratio.bar is not None:
            axes.plot([ratio.bar.at_most] * 2, [place - 0.46, place + 0.46], color=ASKED, linewidth=1.8)
            axes.plot([ratio.bar.aim] * 2, [place - 0.46, place + 0.46], color=ASKED, linewidth=1.0, linestyle=":")
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_xscale("log")
    values = [v for _, r in rows for v in (r.low, r.high, *((r.bar.at_most, r.bar.aim) if r.bar else ()))]
    axes.set_xlim(min(0.5, *values) / 1.5, max(1.25, *values) * 1.25)
    axes.set_yticks(range(len(labels)), [f"{subject}, against {peer}" for subject, peer in labels], fontsize=8)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    ticks = [tick for tick in TICKS if _within(axes, tick)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    _style(axes)
    axes.grid(True, axis="x", color=FAINT, linewidth=0.5)
    axes.set_xlabel(
        "refnet over the peer, time or memory: to the left of 1 refnet is quicker or smaller", fontsize=9, color=INK
    )
    handles = [
        *(Patch(color=color, label=label) for color, label in VERDICTS.items() if color in used),
        Line2D([], [], color=ASKED, linewidth=1.8, label="at most"),
        Line2D([], [], color=ASKED, linewidth=1.0, linestyle=":", label="aim"),
    ]
    if len(threads) > 1:
        handles += [
            Patch(color=KEPT, alpha=SHADES[min(index, 1)], label=with_threads(n)) for index, n in enumerate(threads)
        ]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize=8)
    return figure


def _within(axes: Axes, value: float) -> bool:
    low, high = axes.get_xlim()
    return bool(low <= value <= high)


def growth_chart(growths: Sequence[Growth]) -> Figure:
    """A panel for each curve, both axes logarithmic, with the fitted powers."""
    columns = min(4, len(growths))
    lines = -(-len(growths) // columns)
    figure = Figure(figsize=(max(3.2 * columns, 5), 3.0 * lines), layout="constrained", facecolor=GROUND)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, growth in zip(panels, growths, strict=False):
        for name, spreads in growth.spreads.items():
            medians = np.array([spread.median for spread in spreads]) * (1 if growth.unit == "MiB" else 1e3)
            label = f"{name}: {growth.along}$^{{{growth.exponents[name]:.2f}}}$"
            axes.plot(
                growth.sizes, medians, "o-", color=COLORS.get(name, INK), markersize=4, linewidth=1.4, label=label
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(growth.sizes, [_short(size) for size in growth.sizes])
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        title = growth.curve.removeprefix("scaling: ").replace(" against ", "\nagainst ")  # one line may not fit
        many = len({g.threads for g in growths}) > 1
        axes.set_title(title + (f", {with_threads(growth.threads)}" if many else ""), fontsize=9, loc="left", color=INK)
        axes.set_xlabel(growth.along, fontsize=8, color=INK)
        axes.set_ylabel("MiB" if growth.unit == "MiB" else "ms", fontsize=8, color=INK)
        _style(axes)
        axes.grid(True, color=FAINT, linewidth=0.5)
        axes.legend(frameon=False, fontsize=7, labelcolor=INK)
    for axes in panels[len(growths) :]:
        axes.set_visible(False)
    return figure


def _short(size: int) -> str:
    return f"{round(size**0.5)}²" if size > 20_000 and round(size**0.5) ** 2 == size else f"{size:,}"


def _style(axes: Axes) -> None:
    axes.set_facecolor(GROUND)
    axes.tick_params(colors=INK, labelsize=8, length=3)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
