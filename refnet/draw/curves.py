"""Losses over the steps of training, and precision against recall, as Matplotlib figures.

Figures are made without ``matplotlib.pyplot``, so nothing global changes and no window system is needed.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from refnet.arrays import Array
from refnet.errors import DataError

Theme: TypeAlias = Literal["light", "dark"]

# ink, faint ink, ground; then the colours of lines, told apart by the colour-blind as well (after Okabe and Ito 2008)
_THEMES: dict[Theme, dict[str, str]] = {
    "light": {"ink": "#1f2430", "faint": "#c9ced8", "ground": "#ffffff"},
    "dark": {"ink": "#e6e8ee", "faint": "#434957", "ground": "#1b1e26"},
}
_LINES: dict[Theme, tuple[str, ...]] = {
    "light": (
        "#0072b2",
        "#d55e00",
        "#009e73",
        "#a5478a",
        "#b58900",
        "#2aa1d8",
        "#7f5539",
        "#6a4fb3",
        "#5f7f00",
        "#c2334d",
    ),
    "dark": (
        "#56b4e9",
        "#ff8a3d",
        "#2fd39f",
        "#e78ac3",
        "#f0d043",
        "#9ad7ff",
        "#c9a27e",
        "#b39ddb",
        "#b8d45a",
        "#ff7f93",
    ),
}
MAX_NAMED = 10  # more classes than this share one colour, or no legend could hold them


def loss_curves(metrics: Sequence[Mapping[str, Any]], *, theme: Theme = "light") -> Figure:
    """The losses, the learning rate and the gradient's norm over the steps.

    Losses and norms are running means over a fiftieth of the steps; behind them, pale, the total loss of every step.

    Args:
        metrics: a mapping for each step with "step", "loss" and any of "..._loss", "lr" and "grad_norm".

    Raises:
        DataError: there are no steps, or "step" or "loss" is missing.
    """
    if not metrics or not all("step" in row and "loss" in row for row in metrics):
        raise DataError("loss_curves: expected at least one step, each with 'step' and 'loss'")
    steps = np.array([row["step"] for row in metrics], np.float64)
    names = ["loss"] + [n for n in metrics[0] if n.endswith("_loss") and all(n in row for row in metrics)]
    others = [n for n in ("lr", "grad_norm") if all(n in row for row in metrics)]
    figure = Figure(figsize=(10, 3.4), layout="constrained", facecolor=_THEMES[theme]["ground"])
    ratios = [2.2] + [1.0] * len(others)
    panels = list(figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0])

    values = {name: np.array([row[name] for row in metrics], np.float64) for name in (*names, *others)}
    window = max(1, len(steps) // 50)
    colors = (_THEMES[theme]["ink"], *_LINES[theme])
    axes = panels[0]
    axes.plot(steps, values["loss"], color=_THEMES[theme]["faint"], linewidth=0.8)
    for name, color in zip(names, colors, strict=False):
        label = "total" if name == "loss" else name.removesuffix("_loss").replace("_", " ")
        axes.plot(steps, _running_mean(values[name], window), color=color, linewidth=1.6, label=label)
    positive = np.concatenate([values[name][values[name] > 0] for name in names])
    if positive.size and positive.max() > 20 * positive.min():
        axes.set_yscale("log")
        axes.set_ylim(bottom=max(float(np.percentile(positive, 1)) / 2, 1e-6))
    _style(axes, theme, title="losses", x="step")
    axes.legend(loc="upper right", ncols=3, frameon=False, labelcolor=_THEMES[theme]["ink"], fontsize=8)
    for axes, name in zip(panels[1:], others, strict=True):
        line = values[name] if name == "lr" else _running_mean(values[name], window)
        axes.plot(steps, line, color=_LINES[theme][0], linewidth=1.6)
        title = {"lr": "learning rate", "grad_norm": "norm of the gradient"}[name]
        _style(axes, theme, title=title, x="step")
        axes.set_ylim(bottom=0)
    return figure


def precision_recall_curves(
    metrics: Mapping[str, Any], recall: Sequence[float], *, title: str, theme: Theme = "light"
) -> Figure:
    """Precision against recall at the thresholds 0.50 and 0.75, and averaged over 0.50 to 0.95.

    Args:
        metrics: as ``refnet.evaluate.Metrics.to_json`` returns them.
        recall: the levels of recall that the curves stand at.
        title: what is compared: "boxes", "masks" or "keypoints", whose likeness is the OKS instead.
    """
    figure = Figure(figsize=(10, 3.4), layout="constrained", facecolor=_THEMES[theme]["ground"])
    names = [entry["name"] for entry in metrics["classes"]]
    curves = metrics["precision"]
    for axes, threshold in zip(figure.subplots(1, len(curves)), curves, strict=True):
        rows = curves[threshold]
        for k, (name, row) in enumerate(zip(names, rows, strict=True)):
            named = len(names) <= MAX_NAMED
            if row is not None:
                color = _LINES[theme][k] if named else _THEMES[theme]["faint"]
                axes.plot(recall, row, color=color, linewidth=1.3, label=_plain(name) if named else None)
        present = [row for row in rows if row is not None]
        if len(present) > 1:
            mean = np.mean(present, axis=0)
            axes.plot(recall, mean, color=_THEMES[theme]["ink"], linewidth=2.2, label="mean of classes")
        likeness = "OKS" if title == "keypoints" else "IoU"
        at = f"mean of {likeness} 0.50 to 0.95" if threshold == "mean" else f"{likeness} {threshold}"
        _style(axes, theme, title=f"{title}, {at}", x="recall")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04), ylabel="precision")
        if present:
            axes.legend(loc="lower left", frameon=False, labelcolor=_THEMES[theme]["ink"], fontsize=8)
    return figure


def png_bytes(figure: Figure, *, dpi: int = 110) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None}, pil_kwargs={"optimize": True})
    return buffer.getvalue()


def _plain(text: str) -> str:
    """`text` without meaning to Matplotlib, which takes dollars for formulas."""
    return text.replace("$", r"\$")


def _running_mean(values: Array, window: int) -> Array:
    """The mean of each value and up to `window` - 1 before it."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    means: Array = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def _style(axes: Axes, theme: Theme, *, title: str, x: str) -> None:
    ink, faint = _THEMES[theme]["ink"], _THEMES[theme]["faint"]
    axes.set_facecolor(_THEMES[theme]["ground"])
    axes.set_title(title, color=ink, fontsize=10, loc="left")
    axes.set_xlabel(x, color=ink, fontsize=9)
    axes.yaxis.label.set(color=ink, fontsize=9)
    axes.tick_params(colors=ink, which="both", labelsize=8, length=3)
    axes.grid(True, color=faint, linewidth=0.5)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(faint)
