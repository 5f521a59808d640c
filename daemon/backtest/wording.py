"""How facts of a backtest are put, the same on a terminal and on a page."""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING

from gruard.daemon.backtest.measures import BUDGET_PER_10K, FLOORS, GRUARD
from gruard.daemon.core.payloads import rfc3339

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gruard.daemon.backtest.measures import Event, Measured, Ranking, Total
    from gruard.daemon.backtest.report import Report
    from gruard.daemon.backtest.run import Finished
    from gruard.daemon.backtest.series import Series
    from gruard.models.quality.episodes import Outcome

#: What a value that is not known is shown as.
NOTHING = "-"
#: Columns of the table of controls.
RANKING_COLUMNS = (
    "detector",
    "VUS-PR",
    "VUS-PR in-sample",
    "AUC-PR",
    "AUC-PR in-sample",
    f"events at {BUDGET_PER_10K:g} false per 10,000",
)
#: Columns of the table of devices.
DEVICE_COLUMNS = (
    "device",
    "readings",
    "warm-up",
    "alerts",
    "events found",
    "false per 10,000",
    "VUS-PR",
)
_NAMES = {
    "level": "level only",
    "linear": "linear only",
    "ewma": "EWMA",
    "last_value": "last value",
    "random": "random (floor)",
    "always": "always on (floor)",
}
_SPANS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"))


def plain(text: str, keep: str = "") -> str:
    """Text that steers no terminal: whatever is not printable becomes a question mark, but for `keep`."""
    return "".join(c if c.isprintable() or c in keep else "?" for c in text)


def number(value: float | None, digits: int = 2) -> str:
    """A number with so many decimals; NOTHING for what is not known."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def short(value: float | None) -> str:
    """A reading in four significant digits."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    return next(
        (f"{seconds / size:.3g} {unit}" for size, unit in _SPANS if seconds >= size), f"{seconds:.3g} s"
    )


def moment(series: Series, row: int) -> str:
    """A reading by its time, where there is one, and by its place else."""
    return instant(float(series.history.time_s[row])) if series.timed else f"reading {row + 1:,}"


def instant(time_s: float) -> str:
    """Unix seconds as date and time in UTC; parts of a second where there are any."""
    return rfc3339(time_s).replace("T", " ").replace(".000Z", "Z")


def shares(parts: Sequence[tuple[str, float]]) -> str:
    """Who makes up an alert: `flow 62%, vibration 21%`."""
    return ", ".join(f"{name} {share:.0%}" for name, share in parts) or NOTHING


def found(outcome: Outcome) -> str:
    """Events found out of all."""
    return f"{outcome.hit} of {outcome.events}" if outcome.events else NOTHING


def verdict(event: Event) -> str:
    """What became of a labelled anomaly."""
    if not event.judged:
        return "in the warm-up"
    return "no" if event.alert is None else "yes"


def delay(total: Total) -> str:
    """The median delay in readings, and in time where it is known."""
    if not total.outcome.delays:
        return NOTHING
    rows = total.outcome.median_delay
    told = "1 reading" if rows == 1 else f"{rows:g} readings"
    if len(total.delays_s) == len(total.outcome.delays):
        told += f" ({duration(median(total.delays_s))})"
    return told


def rates(total: Total) -> str:
    """How often alerts came in quiet time."""
    told = f"{total.outcome.false_episodes}"
    if total.outcome.quiet_rows:
        told += f": {number(total.outcome.false_per_10k)} per 10,000 readings"
    if total.per_week is not None:
        told += f", {number(total.per_week)} per device-week"
    return told


def caveats(report: Report) -> list[str]:
    """What must be known before any number of a backtest is believed; empty where nothing is unusual."""
    told = []
    if not report.causal:
        told.append(
            "Not causal: these scores use hindsight. Each reading was judged with readings that came after"
            " it, which no running daemon has. They show what could be known, not what would have been told."
        )
    if report.interrupted:
        short = [
            f"{one.series.name} after {one.series.rows:,} readings" for one in report.finished if one.left
        ]
        told.append(
            "Interrupted: only part of the recording was judged."
            + (f" Cut short: {', '.join(short)}." if short else "")
            + (f" Not judged: {', '.join(report.unfinished)}." if report.unfinished else "")
        )
    if any(not one.series.timed for one in report.finished):
        told.append("The recording tells no time: its readings count as one second apart.")
    return told


def headline(report: Report) -> list[tuple[str, str]]:
    """What a backtest came to, as pairs of a name and a value."""
    total = report.total
    readings = sum(one.series.rows for one in report.finished)
    labelled = sum(one.series.labels is not None for one in report.finished)
    partly = f", {labelled:,} of them with labels" if 0 < labelled < len(report.finished) else ""
    lines = [
        ("devices", f"{len(report.finished):,}{partly}"),
        ("readings", f"{readings:,}"),
        ("alerts", f"{sum(len(one.raised) for one in report.finished):,}"),
    ]
    if not total.labelled:
        return [
            *lines,
            (
                "alert episodes behind the warm-up",
                f"{rates(total)}; without labels, none is known to be false",
            ),
        ]
    return [
        *lines,
        ("events found", found(total.outcome)),
        ("median delay", delay(total)),
        ("false episodes", rates(total)),
    ]


def row_by_row(measured: Measured) -> str:
    """How alerts agree with labels, reading by reading, beside an alarm that never ends; else empty."""
    own, always = measured.rates, measured.always
    if own is None or always is None:
        return ""
    return (
        f"Each reading behind the warm-up: F1 {own.f1:.2f} (an alarm that never ends: {always.f1:.2f}),"
        f" in alarm for {own.far:.1f}% of the normal readings, silent for {own.mar:.1f}% of the others."
    )


def device_rows(report: Report) -> list[tuple[str, ...]]:
    """The table of devices, in their order."""
    return [_device_row(one) for one in report.finished]


def _device_row(one: Finished) -> tuple[str, ...]:
    measured = one.measured
    labelled = one.series.labels is not None
    own = measured.rankings.get(GRUARD)
    return (
        one.series.name,
        f"{one.series.rows:,}",
        f"{one.warmup:,}",
        f"{len(one.raised):,}",
        found(measured.outcome) if labelled else NOTHING,
        number(measured.outcome.false_per_10k) if labelled else NOTHING,
        number(None if own is None else own.vus_pr, 3),
    )


def ranking_rows(rankings: Mapping[str, Ranking]) -> list[tuple[str, ...]]:
    """The table of controls: our own detector first, floors last; empty where nothing was ranked."""
    return [
        (
            _NAMES.get(name, name),
            number(r.vus_pr, 3),
            number(r.vus_pr_in_sample, 3),
            number(r.auc_pr, 3),
            number(r.auc_pr_in_sample, 3),
            NOTHING if name in FLOORS else f"{r.found} of {r.events}",
        )
        for name, r in sorted(rankings.items(), key=lambda item: (item[0] in FLOORS, item[0] != GRUARD))
    ]
