"""The report as one HTML file: no script, nothing loaded from anywhere, readable by day and by night.

Everything that a chart shows stands in a table too, for those who do not see it.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from gruard.daemon.backtest import svg, wording
from gruard.daemon.backtest.style import STYLE
from gruard.daemon.backtest.svg import Mark

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gruard.daemon.backtest.envelope import Envelope
    from gruard.daemon.backtest.measures import Event
    from gruard.daemon.backtest.report import Report
    from gruard.daemon.backtest.run import Finished
    from gruard.daemon.backtest.series import Series

#: Rows of a table that a page shows; the JSON has them all.
MOST_ROWS = 200
#: With more charts than these, those of the fields are folded away.
MOST_OPEN_CHARTS = 24

_HEAD = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    # Nothing may be loaded or run, whatever a recording's names would have the browser do.
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline';"
    ' img-src data:">'
    '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
)


def page(report: Report) -> str:
    """The whole page."""
    title = f"Backtest of {report.recording}"
    charts = sum(len(one.series.fields) for one in report.finished)
    devices = [
        _device(one, f"device-{n}", unfold=charts <= MOST_OPEN_CHARTS)
        for n, one in enumerate(report.finished)
    ]
    body = [
        '<a class="skip" href="#devices">Skip to the devices</a>',
        f"<header><h1>{escape(title)}</h1><p>{_made(report)}</p></header><main>",
        *(f'<p class="caveat" role="note">{escape(text)}</p>' for text in wording.caveats(report)),
        _headline(report),
        _controls(report),
        _overview(report),
        '<div id="devices">',
        *devices,
        "</div>",
        _left_out(report),
        "</main>",
    ]
    return (
        f"{_HEAD}<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>{chr(10).join(part for part in body if part)}</body></html>\n"
    )


def _made(report: Report) -> str:
    options = ", ".join(
        escape(name if value is True else f"{name} {value}")
        for name, value in report.options.items()
        if value is not None and value is not False
    )
    return f"gruard {escape(report.version)}, {wording.instant(report.made_s)}. {options}."


def _headline(report: Report) -> str:
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in wording.headline(report)
    )
    return f'<section aria-label="Summary"><dl class="facts">{facts}</dl></section>'


def _controls(report: Report) -> str:
    rows = wording.ranking_rows(report.total.rankings)
    if not rows:
        return ""
    caption = (
        "How well scores rank anomalous readings above normal ones (0 to 1; means over the labelled devices)."
        " Two conventions: readings of the warm-up score zero, or in-sample, as the model that was fitted on"
        " them scores them. The last column gives each detector its own best threshold, which is chosen with"
        " the labels at hand."
    )
    table = _table("controls", wording.RANKING_COLUMNS, rows, caption, heads=1)
    return f"<section><h2>Beside simple detectors</h2>{table}</section>"


def _overview(report: Report) -> str:
    """All devices in one table, with links; not worth it for one."""
    if len(report.finished) < 2:
        return ""
    rows = [
        (f'<a href="#device-{n}">{escape(name)}</a>', *map(escape, cells))
        for n, (name, *cells) in enumerate(wording.device_rows(report))
    ]
    table = _table("overview", wording.DEVICE_COLUMNS, rows, "Each device", heads=1, raw=True)
    return f"<section><h2>Devices</h2>{table}</section>"


def _device(one: Finished, anchor: str, *, unfold: bool) -> str:
    series = one.series
    facts = (
        f"{series.rows:,} readings, the first {one.warmup:,} of them warm-up; alerts: {len(one.raised):,}."
        f" {wording.row_by_row(one.measured)}"
    )
    return "".join(
        (
            f'<section class="device" id="{anchor}"><h2>{escape(series.name)}</h2><p>{facts}</p>',
            _score(one),
            _fields(one, unfold=unfold),
            _alerts(one),
            _events(one),
            _stored(series),
            "</section>",
        )
    )


def _score(one: Finished) -> str:
    drawing, series = one.drawing, one.series
    stretches = len(drawing.starts)
    anomalies = [Mark(e.first, e.last, _event_title(series, e), "label") for e in one.measured.events]
    alerts = [
        Mark(a.first, a.last, f"{wording.moment(series, a.first)}: {a.severity}. {a.message}", "alert")
        for a in one.raised
    ]
    warm = [Mark(0, one.warmup - 1, f"warm-up: the first {one.warmup} readings", "warm")]
    label = f"Score of {series.name} over {series.rows} readings, {len(alerts)} alerts"
    chart = svg.chart(
        label,
        stretches,
        [
            ("score", svg.trace(drawing.score, 0.0, 1.0)),
            ("threshold", svg.line(drawing.threshold, 0.0, 1.0)),
        ],
        svg.bands([*warm, *anomalies], series.rows, stretches),
        "tall",
    )
    lanes = [("alerts", alerts)]
    if series.labels is not None:
        lanes.append(("labels", anomalies))
    if series.stored:
        lanes.append(("told live", _stored_marks(series)))
    drawn = "".join(
        f'<span class="name">{name}</span>'
        + svg.chart(
            f"{name} of {series.name}: {len(marks)}",
            stretches,
            [],
            svg.bands(marks, series.rows, stretches),
            "lane",
        )
        for name, marks in lanes
    )
    key = "blue: score; dashed: threshold; grey: warm-up" + (
        "; amber: labelled anomaly" if series.labels is not None else ""
    )
    return (
        f'<figure><figcaption>Score ({key})</figcaption><div class="plot">'
        f'<span class="name axis"><span>1</span><span>0</span></span>{chart}{drawn}{_axis(series)}'
        "</div></figure>"
    )


def _axis(series: Series) -> str:
    """What stands below a chart: where it begins, its middle and its end."""
    rows = (0, series.rows // 2, series.rows - 1)
    places = "".join(f"<span>{wording.moment(series, row)}</span>" for row in rows)
    return f'<span class="name"></span><div class="times">{places}</div>'


def _fields(one: Finished, *, unfold: bool) -> str:
    series, drawing = one.series, one.drawing
    stretches = len(drawing.starts)
    marks = [Mark(a.first, a.last, "", "alert faint") for a in one.raised]
    backdrop = svg.bands(marks, series.rows, stretches)
    drawn = []
    for name, seen, expected in zip(series.fields, drawing.fields, drawing.expected, strict=True):
        bottom, top = _range(seen)
        chart = svg.chart(
            f"{name} of {series.name}, from {wording.short(bottom)} to {wording.short(top)}",
            stretches,
            [("expected", svg.trace(expected, bottom, top)), ("reading", svg.trace(seen, bottom, top))],
            backdrop,
            "low",
        )
        span = f"{wording.short(bottom)} to {wording.short(top)}"
        drawn.append(f"<figure><figcaption><b>{escape(name)}</b> {escape(span)}</figcaption>{chart}</figure>")
    summary = "Readings (thin line), what was expected (broad) and alerts (red)"
    return (
        f"<details{' open' if unfold else ''}><summary>{summary}</summary>"
        f'<div class="fields">{"".join(drawn)}</div></details>'
    )


def _range(seen: Envelope) -> tuple[float, float]:
    known = np.isfinite(seen.low)
    if not known.any():
        return 0.0, 0.0
    return float(seen.low[known].min()), float(seen.high[known].max())


def _alerts(one: Finished) -> str:
    if not one.raised:
        return "<p>No alert.</p>"
    rows = [
        (
            wording.moment(one.series, a.first),
            wording.moment(one.series, a.last) if a.ended else "still open",
            f"{a.last + 1 - a.first:,}",
            a.severity,
            wording.number(a.peak),
            wording.shares(a.shares),
            a.message,
        )
        for a in one.raised
    ]
    columns = ("opened", "last", "readings", "severity", "peak score", "shares", "message")
    return _table("alerts", columns, rows, f"Alerts of {one.series.name}", fold=True)


def _events(one: Finished) -> str:
    if not one.measured.events:
        return ""
    rows = [
        (
            wording.moment(one.series, e.first),
            wording.moment(one.series, e.last),
            wording.verdict(e),
            wording.NOTHING if e.delay is None else f"{e.delay:,}",
            wording.duration(e.delay_s),
            wording.number(e.peak),
            wording.shares(e.shares),
        )
        for e in one.measured.events
    ]
    columns = ("first", "last", "found", "delay in readings", "delay", "peak score", "shares")
    return _table("events", columns, rows, f"Labelled anomalies of {one.series.name}", fold=True)


def _stored(series: Series) -> str:
    if not series.stored:
        return ""
    rows = [
        (
            wording.instant(s.opened_s),
            "still open" if s.resolved_s is None else wording.instant(s.resolved_s),
            s.severity,
            s.message,
        )
        for s in series.stored
    ]
    columns = ("opened", "resolved", "severity", "message")
    return _table("stored", columns, rows, f"Alerts that the daemon raised live for {series.name}", fold=True)


def _stored_marks(series: Series) -> list[Mark]:
    times = series.history.time_s
    marks = []
    for stored in series.stored:
        end_s = times[-1] if stored.resolved_s is None else stored.resolved_s
        first, last = np.searchsorted(times, [stored.opened_s, end_s])
        if first < series.rows:
            title = f"{wording.instant(stored.opened_s)}: {stored.severity}. {stored.message}"
            marks.append(Mark(int(first), min(int(last), series.rows - 1), title, "stored"))
    return marks


def _left_out(report: Report) -> str:
    lines = [f"{name}: {reason}" for name, reason in report.skipped] + list(report.notes)
    if not lines:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in lines[:MOST_ROWS])
    more = f"<p>And {len(lines) - MOST_ROWS:,} more, in report.json.</p>" if len(lines) > MOST_ROWS else ""
    return f"<section><h2>Left out</h2><ul>{items}</ul>{more}</section>"


def _event_title(series: Series, event: Event) -> str:
    return f"{wording.moment(series, event.first)}: labelled anomaly, {wording.verdict(event)}"


def _table(
    kind: str,
    columns: Sequence[str],
    rows: Sequence[Iterable[str]],
    caption: str,
    *,
    heads: int = 0,
    raw: bool = False,
    fold: bool = False,
) -> str:
    """A table that scrolls by itself, by keyboard too.

    The first `heads` cells of a row are its heading; `raw` rows are HTML already; `fold` lets it be closed.
    """
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{text}</th>' if place < heads else f"<td>{text}</td>"
            for place, text in enumerate(row if raw else map(escape, row))
        )
        + "</tr>"
        for row in rows[:MOST_ROWS]
    )
    more = f"<p>And {len(rows) - MOST_ROWS:,} more, in report.json.</p>" if len(rows) > MOST_ROWS else ""
    table = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table class="{kind}"><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{more}"
    )
    if not fold:
        return table
    return f"<details open><summary>{escape(caption)} ({len(rows):,})</summary>{table}</details>"
