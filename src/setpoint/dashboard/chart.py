"""A chart of latency against throughput as an SVG text, drawn by matplotlib without a display.

One line a series in an order of colours that colour-blind people can tell apart (Okabe and Ito), each ended by its own
label, so that no legend has to be consulted; targets are dashed, the chosen point is ringed. Text stays text.
"""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACCENT = "#0072B2"
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#999999")
INK, FAINT, TARGET = "#222222", "#DDDDDD", "#B00020"
MARKERS = "osD^vP"


class Spot(msgspec.Struct, frozen=True, kw_only=True):
    """One point; `low` and `high` are the ends of the interval of `y`, `None` where the sample has none.

    `is_firm`: whether the sample bears the value; one that is not firm is drawn hollow.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    is_firm: bool = True
    is_chosen: bool = False


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """One line; `is_accented`: the one that the chart is about."""

    name: str
    spots: tuple[Spot, ...]
    is_accented: bool = False


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    """One pair of axes; `target` is a horizontal line."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    target: float | None = None
    target_label: str = ""


def draw(panels: Sequence[Panel], *, caption: str = "") -> str:
    """Return the panels, side by side, as one SVG text that starts with `<svg`."""
    import matplotlib as mpl  # noqa: PLC0415 - slow to import, and not needed by most commands

    mpl.use("Agg")
    from matplotlib.figure import Figure  # noqa: PLC0415

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "setpoint",
        "font.family": "sans-serif",
        "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans"],
        "font.size": 10,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(5.6 * len(panels), 4.4), layout="constrained")
        for index, panel in enumerate(panels):
            _draw_panel(figure.add_subplot(1, len(panels), index + 1), panel)
        if caption:
            figure.supxlabel(caption, fontsize=8.5, color="#666666", x=0.01, ha="left")
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": "Setpoint"})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _draw_panel(axes: "Axes", panel: Panel) -> None:
    colours = iter(COLOURS)
    ends = []
    for index, series in enumerate(panel.series):
        colour = ACCENT if series.is_accented else next(colours, INK)
        if series.spots:
            _draw_series(axes, series, colour, MARKERS[index % len(MARKERS)])
            ends.append((series.name, series.spots[-1], colour, series.is_accented))
    axes.set_title(panel.title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_xlabel(panel.x_label, color=INK)
    axes.set_ylabel(panel.y_label, color=INK)
    _scale(axes, panel)
    if panel.target is not None:
        axes.axhline(panel.target, color=TARGET, linestyle=(0, (5, 3)), linewidth=1.2, zorder=1)
        axes.annotate(
            panel.target_label,
            xy=(0.01, panel.target),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            color=TARGET,
            fontsize=9,
        )
    axes.grid(visible=True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    _label_ends(axes, ends)


def _draw_series(axes: "Axes", series: Series, colour: str, marker: str) -> None:
    xs, ys = [spot.x for spot in series.spots], [spot.y for spot in series.spots]
    strong = series.is_accented
    axes.plot(xs, ys, color=colour, linewidth=2.2 if strong else 1.4, zorder=3 if strong else 2)
    for spot in series.spots:
        low = spot.y if spot.low is None else spot.low
        high = spot.y if spot.high is None else spot.high
        axes.plot([spot.x, spot.x], [low, high], color=colour, linewidth=1.0, alpha=0.45, zorder=2)
        axes.plot(
            [spot.x],
            [spot.y],
            marker=marker,
            markersize=6.5 if strong else 5,
            color=colour,
            markerfacecolor=colour if spot.is_firm else "white",
            zorder=4,
        )
        if spot.is_chosen:
            axes.plot([spot.x], [spot.y], marker="o", markersize=15, color=INK, fillstyle="none", zorder=5)
            axes.annotate(
                "chosen",
                (spot.x, spot.y),
                xytext=(0, -17),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                fontweight="bold",
                color=INK,
                zorder=6,
            )


def _scale(axes: "Axes", panel: Panel) -> None:
    """Use a logarithmic axis of latency, with plain numbers, when the values span a factor of ten."""
    ys = [spot.y for series in panel.series for spot in series.spots]
    ys += [] if panel.target is None else [panel.target]
    if ys and min(ys) > 0.0 and max(ys) / min(ys) > 8.0:  # noqa: PLR2004 - where a linear axis hides the small ones
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # noqa: PLC0415

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(min(ys) * 0.7, max(ys) * 1.5)
    elif ys:
        axes.set_ylim(0.0, (max(ys) or 1.0) * 1.18)
    xs = [spot.x for series in panel.series for spot in series.spots]
    if xs:
        axes.set_xlim(0.0, max(xs) * 1.22)


def _plain(value: float, _position: Any) -> str:  # noqa: ANN401 - the signature that matplotlib calls
    return f"{value:,.0f}" if value >= 1.0 else f"{value:g}"


def _label_ends(axes: "Axes", ends: Sequence[tuple[str, Spot, str, bool]]) -> None:
    """Write each name beside the end of its line, moved apart where ends lie close together."""
    if not ends:
        return
    axes.figure.canvas.draw()
    transform = axes.transData
    places = sorted((float(transform.transform((spot.x, spot.y))[1]), name, spot, c, s) for name, spot, c, s in ends)
    last = -math.inf
    for at, name, spot, colour, strong in places:
        moved = max(at, last + 14.0 * axes.figure.dpi / 100.0)
        last = moved
        axes.annotate(
            name,
            (spot.x, spot.y),
            xytext=(9, (moved - at) * 72.0 / axes.figure.dpi),
            textcoords="offset points",
            va="center",
            fontsize=9.5,
            fontweight="bold" if strong else "normal",
            color=colour,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
            zorder=6,
        )
