"""The report as one picture (PNG), for a ticket or a slide. The one module that imports matplotlib."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gruard.daemon.backtest import wording

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from gruard.daemon.backtest.report import Report
    from gruard.daemon.backtest.run import Finished

#: Devices that a picture has room for; the first ones are shown.
MOST_DEVICES = 12
#: Inches, and dots of each.
WIDTH, HEIGHT_EACH, HEIGHT_MORE, DOTS = 12.0, 2.2, 1.3, 110
_SCORE, _ALERT, _LABEL, _WARM = "#0b5cad", "#c62828", "#b26a00", "#9aa4b2"


def write_chart(report: Report, path: Path) -> None:
    """Draw scores, thresholds, alerts and labels of the first devices; the report has at least one.

    Raises:
        OSError: the file cannot be written.
    """
    shown = report.finished[:MOST_DEVICES]
    figure = Figure(figsize=(WIDTH, HEIGHT_MORE + HEIGHT_EACH * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)  # which figures need to be saved without a screen
    axes = [figure.add_subplot(len(shown), 1, place + 1) for place in range(len(shown))]
    for one, own in zip(shown, axes, strict=True):
        _draw(one, own)
    axes[0].legend(loc="upper left", ncols=5, fontsize="small", framealpha=0.8)
    figure.suptitle(_title(report, len(shown)), fontsize="medium", parse_math=False)
    with path.open("wb") as file, warnings.catch_warnings():
        # The built-in font lacks the letters of some names, and says so once for each.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(file, format="png", dpi=DOTS)


def _title(report: Report, shown: int) -> str:
    told = [f"{name}: {value}" for name, value in wording.headline(report)]
    lines = [f"Backtest of {report.recording}", "; ".join(told), *wording.caveats(report)]
    if shown < len(report.finished):
        lines.append(f"The first {shown} of {len(report.finished)} devices.")
    return wording.plain("\n".join(lines), keep="\n")


def _draw(one: Finished, axes: Axes) -> None:
    drawing, series = one.drawing, one.series
    x = (drawing.starts + np.append(drawing.starts[1:], series.rows)) / 2
    axes.axvspan(0, one.warmup, color=_WARM, alpha=0.3, lw=0, label="warm-up")
    for place, event in enumerate(one.measured.events):
        axes.axvspan(
            event.first,
            event.last + 1,
            color=_LABEL,
            alpha=0.35,
            lw=0,
            label="labelled" if place == 0 else None,
        )
    for place, alert in enumerate(one.raised):
        label = "alert" if place == 0 else None
        axes.axvspan(alert.first, alert.last + 1, 0, 0.06, color=_ALERT, lw=0.8, label=label)
    axes.fill_between(x, drawing.score.low, drawing.score.high, color=_SCORE, lw=0.8, label="score")
    axes.step(x, drawing.threshold, where="mid", color="black", lw=0.8, ls="--", label="threshold")
    axes.set(xlim=(0, series.rows), ylim=(0, 1))
    axes.set_ylabel("score")
    axes.set_title(wording.plain(series.name), fontsize="small", loc="left", parse_math=False)
    ticks = [0, series.rows // 2, series.rows - 1]
    axes.set_xticks(ticks, [wording.moment(series, row) for row in ticks], fontsize="small")
    first, _, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")
