"""The report as one object, and as JSON: RFC 3339 times, finite numbers, null for what is not known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from gruard.daemon.core.payloads import rfc3339

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from gruard.daemon.backtest.measures import Ranking, Total
    from gruard.daemon.backtest.run import Finished
    from gruard.daemon.backtest.series import Series
    from gruard.models.quality.episodes import Outcome

SCHEMA = "gruard.backtest/1"


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """Everything that is told about one backtest."""

    recording: str  # as it was named
    version: str
    made_s: float  # Unix seconds
    options: Mapping[str, str | int | float | bool | None]
    causal: bool  # false: scores depend on readings that came later
    finished: tuple[Finished, ...]
    total: Total
    skipped: tuple[tuple[str, str], ...]  # device, reason
    unfinished: tuple[str, ...]  # devices that an interruption left out
    notes: tuple[str, ...]

    @property
    def interrupted(self) -> bool:
        """Whether readings were left unscored because somebody was in a hurry."""
        return bool(self.unfinished) or any(one.left for one in self.finished)


def as_json(report: Report) -> bytes:
    """The report for scripts."""
    body = {
        "schema": SCHEMA,
        "gruard": report.version,
        "made_at": rfc3339(report.made_s),
        "recording": report.recording,
        "causal": report.causal,
        "interrupted": report.interrupted,
        "options": dict(report.options),
        "total": {
            "devices": len(report.finished),
            "readings": sum(one.series.rows for one in report.finished),
            "alerts": sum(len(one.raised) for one in report.finished),
            "labelled": report.total.labelled,
            **_outcome(report.total.outcome, report.total.per_week, labelled=report.total.labelled),
            "median_delay_s": _known(float(np.median(report.total.delays_s)))
            if report.total.delays_s
            else None,
            "rankings": _rankings(report.total.rankings),
        },
        "devices": [_device(one) for one in report.finished],
        "skipped": [{"device": name, "reason": reason} for name, reason in report.skipped],
        "unfinished": list(report.unfinished),
        "notes": list(report.notes),
    }
    return msgspec.json.format(msgspec.json.encode(body), indent=1) + b"\n"


def _moment(series: Series, row: int) -> str | None:
    """When a reading was taken, where the recording tells."""
    return rfc3339(float(series.history.time_s[row])) if series.timed else None


def _device(one: Finished) -> dict[str, Any]:
    series, measured = one.series, one.measured
    labelled = series.labels is not None
    return {
        "device": series.name,
        "fields": list(series.fields),
        "readings": series.rows,
        "readings_left_out": one.left,
        "first_at": _moment(series, 0),
        "last_at": _moment(series, series.rows - 1),
        "warmup_readings": one.warmup,
        "labelled": labelled,
        **_outcome(measured.outcome, measured.per_week, labelled=labelled),
        "rows": None
        if measured.rates is None or measured.always is None
        else {
            "f1": _known(measured.rates.f1),
            "false_alarm_percent": _known(measured.rates.far),
            "missed_alarm_percent": _known(measured.rates.mar),
            "f1_always_on": _known(measured.always.f1),
        },
        "rankings": _rankings(measured.rankings),
        "alerts": [
            {
                "opened_at": _moment(series, alert.first),
                "last_at": _moment(series, alert.last),
                "opened_row": alert.first,
                "last_row": alert.last,
                "resolved": alert.ended,
                "severity": alert.severity,
                "peak_score": _known(alert.peak),
                "top_fields": _shares(alert.shares),
                "message": alert.message,
            }
            for alert in one.raised
        ],
        "events": [
            {
                "first_at": _moment(series, event.first),
                "last_at": _moment(series, event.last),
                "first_row": event.first,
                "last_row": event.last,
                "judged": event.judged,
                "found": event.alert is not None,
                "delay_readings": event.delay,
                "delay_s": _known(event.delay_s),
                "peak_score": _known(event.peak),
                "top_fields": _shares(event.shares),
            }
            for event in measured.events
        ],
        "stored_alerts": [
            {
                "opened_at": rfc3339(stored.opened_s),
                "resolved_at": None if stored.resolved_s is None else rfc3339(stored.resolved_s),
                "severity": stored.severity,
                "message": stored.message,
            }
            for stored in series.stored
        ],
        "score": {
            "first_rows": one.drawing.starts.tolist(),
            "lowest": _curve(one.drawing.score.low),
            "highest": _curve(one.drawing.score.high),
            "threshold": _curve(one.drawing.threshold),
        },
    }


def _outcome(outcome: Outcome, per_week: float | None, *, labelled: bool) -> dict[str, Any]:
    """Without labels nobody can tell which alerts were false: they are episodes, and no more."""
    kind = "false" if labelled else "alert"
    return {
        "events": outcome.events if labelled else None,
        "events_found": outcome.hit if labelled else None,
        "median_delay_readings": _known(outcome.median_delay),
        f"{kind}_episodes": outcome.false_episodes,
        f"{kind}_episodes_per_10000_readings": _known(outcome.false_per_10k),
        f"{kind}_episodes_per_device_week": _known(per_week),
    }


def _rankings(rankings: Mapping[str, Ranking]) -> dict[str, dict[str, float | int | None]]:
    return {
        name: {
            "vus_pr": _known(r.vus_pr),
            "vus_pr_in_sample": _known(r.vus_pr_in_sample),
            "auc_pr": _known(r.auc_pr),
            "auc_pr_in_sample": _known(r.auc_pr_in_sample),
            "events_found_at_budget": r.found,
        }
        for name, r in rankings.items()
    }


def _shares(shares: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"field": name, "share": _known(share)} for name, share in shares]


def _curve(values: NDArray[np.float64]) -> list[float | None]:
    return [_known(value) for value in values.tolist()]


def _known(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)
