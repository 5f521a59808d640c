"""Charts as inline SVG, stretched by the page to whatever width there is.

The horizontal unit is one stretch of the envelope, the vertical one a thousandth of the height. There is no
text in a chart, because it would be stretched too; titles are what a pointer shows and a screen reader says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from gruard.daemon.backtest.envelope import Envelope

#: Height of a chart in its own units.
HEIGHT = 1000
#: A mark is drawn at least this share of the chart's width: one reading in 100,000 must still be seen.
LEAST_WIDTH = 1 / 400


@dataclass(frozen=True, slots=True)
class Mark:
    """Rows (both inclusive) that stand out, and what is said about them."""

    first: int
    last: int
    title: str
    kind: str = ""  # a class of the page's style


def chart(
    label: str, stretches: int, paths: Iterable[tuple[str, str]], marks: str = "", kind: str = ""
) -> str:
    """One chart: `paths` are pairs of a style class and a path, drawn in their order above the marks."""
    drawn = "".join(f'<path class="{name}" d="{d}"/>' for name, d in paths if d)
    return (
        f'<svg class="{kind}" role="img" aria-label="{escape(label)}" preserveAspectRatio="none"'
        f' viewBox="-0.5 0 {stretches} {HEIGHT}">{marks}{drawn}</svg>'
    )


def trace(envelope: Envelope, bottom: float, top: float) -> str:
    """A line that fills each stretch from its lowest to its highest value; broken where nothing is known.

    Values outside bottom..top are drawn at the edge.
    """
    lows, highs = (_heights(values, bottom, top) for values in (envelope.low, envelope.high))
    parts: list[str] = []
    pen, at = "M", 0
    for x, (low, high) in enumerate(zip(lows, highs, strict=True)):
        if low is None or high is None:
            pen = "M"
            continue
        # From where the pen is, the nearer end first.
        first, second = (low, high) if abs(low - at) <= abs(high - at) else (high, low)
        parts.append(f"{pen}{x} {first}" + ("h0" if pen == "M" else "") + (f"V{second}" * (second != first)))
        pen, at = "L", second
    return "".join(parts)


def line(values: NDArray[np.float64], bottom: float, top: float) -> str:
    """A line through one value (S,) a stretch, with steps; broken where it is not known."""
    parts: list[str] = []
    at: int | None = None
    for x, y in enumerate(_heights(values, bottom, top)):
        if y is not None and at is None:
            parts.append(f"M{x - 0.5:g} {y}")
        elif y is not None and y != at:
            parts.append(f"H{x - 0.5:g}V{y}")
        elif y is None and at is not None:
            parts.append(f"H{x - 0.5:g}")
        at = y
    return "".join(parts) + (f"H{len(values) - 0.5:g}" if at is not None else "")


def bands(marks: Sequence[Mark], rows: int, stretches: int) -> str:
    """Rectangles over the whole height of a chart of `rows` rows."""
    return "".join(_band(mark, rows, stretches) for mark in marks)


def _band(mark: Mark, rows: int, stretches: int) -> str:
    width = max((mark.last + 1 - mark.first) * stretches / rows, stretches * LEAST_WIDTH)
    start = min(mark.first * stretches / rows, stretches - width) - 0.5
    title = f"<title>{escape(mark.title)}</title>" if mark.title else ""
    place = f'x="{start:.2f}" y="0" width="{width:.2f}" height="{HEIGHT}"'
    return f'<rect class="{mark.kind}" {place}>{title}</rect>'


def _heights(values: NDArray[np.float64], bottom: float, top: float) -> list[int | None]:
    """Vertical places of values (S,), from the top; None for what is not known."""
    span = (top - bottom) or 1.0
    # A constant is drawn in the middle.
    shares = (top - values) / span if top > bottom else np.where(np.isnan(values), np.nan, 0.5)
    return [
        None if math.isnan(share) else round(HEIGHT * min(max(share, 0.0), 1.0)) for share in shares.tolist()
    ]
