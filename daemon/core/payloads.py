"""What leaves on MQTT: alert, state and info as JSON, in the form that people's scripts rely on.

The keys of `gruard.alert/1` are a contract. There is never a NaN in it: what is not known is null.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gruard.daemon.core.events import Alert, Scored

ALERT_SCHEMA = "gruard.alert/1"
STATE_SCHEMA = "gruard.state/1"
INFO_SCHEMA = "gruard.info/1"
#: A field is named in the sentence when it makes up at least this share.
WORTH_NAMING = 0.15
MOST_NAMED = 2


@dataclass(frozen=True, slots=True)
class ModelNote:
    """What an alert says about the model behind it."""

    id: str
    trained_s: float | None = None
    skill: float | None = None
    cell: str = ""


def rfc3339(time_s: float) -> str:
    """Unix seconds as RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def alert_payload(alert: Alert, model: ModelNote, instance: str, *, muted: bool = False) -> bytes:
    """The JSON of `<base>/alerts/<device>`; of a `muted` one, which is kept and not published, it says so."""
    body = {
        "schema": ALERT_SCHEMA,
        "id": alert.id,
        "state": alert.state,
        "severity": alert.severity,
        "device": alert.device,
        "group": alert.group,
        "time": rfc3339(alert.time_s),
        "opened_at": rfc3339(alert.opened_s),
        "score": _round(alert.score),
        "threshold": _round(alert.threshold),
        "value": alert.value,
        "expected": _rounded(alert.expected),
        "deviation": _rounded(alert.deviation),
        "contributions": [{"field": name, "share": share} for name, share in _shares(alert)],
        "model": {
            "id": model.id,
            "trained_at": None if model.trained_s is None else rfc3339(model.trained_s),
            "skill": None if model.skill is None else _round(model.skill),
        },
        "message": sentence(alert),
        "instance": instance,
    }
    if alert.kind != "anomaly":
        body["kind"] = alert.kind
    return msgspec.json.encode(body | {"muted": True} if muted else body)


def sentence(alert: Alert) -> str:
    """One English sentence that says what is wrong, in the units of the sensor."""
    said = alert.sentence or _sentence(alert)
    if alert.late_s is None:
        return said
    # Of a source without event times nobody knows how late.
    late = "late" if alert.late_s < 1.0 else f"{duration(alert.late_s)} late"
    return f"{said.removesuffix('.')} (seen {late})."


def _sentence(alert: Alert) -> str:
    if alert.state == "resolved":
        return f"{alert.device} is back to normal after {duration(alert.time_s - alert.opened_s)}."
    weighty = [name for name, share in alert.contributions[:MOST_NAMED] if share >= WORTH_NAMING]
    # "is 32, expected 32" explains nothing, unless there is nothing else to say.
    named = [name for name in weighty if _is_news(name, alert)] or [alert.contributions[0][0]]
    told = [_told(name, alert) for name in named]
    shares = ", ".join(f"{name} {share:.0%}" for name, share in alert.contributions[:MOST_NAMED])
    lasting = "" if alert.state == "opened" else f", for {duration(alert.time_s - alert.opened_s)} now"
    return (
        f"{alert.device} behaves unusually{lasting}: {' and '.join(told)}"
        f" (score {alert.score:.2f}, threshold {alert.threshold:.2f}; shares: {shares})."
    )


def state_payload(scored: Scored, *, alert_id: str, model: str) -> bytes:
    """The JSON of `<base>/state/<device>`, retained."""
    values = dict(zip(scored.fields, scored.values.tolist(), strict=True))
    body = {
        "schema": STATE_SCHEMA,
        "device": scored.reading.device,
        "group": scored.group,
        "state": scored.phase,
        "alarm": bool(alert_id),
        "alert": alert_id or None,
        "score": _known(scored.score),
        "threshold": _known(scored.threshold),
        "time": rfc3339(scored.reading.time_s),
        "value": {name: None if math.isnan(value) else value for name, value in values.items()},
        "model": model,
    }
    return msgspec.json.encode(body)


def info_payload(facts: Mapping[str, Any]) -> bytes:
    """The JSON of `<base>/info`, retained: version, instance, models and counts."""
    return msgspec.json.encode({"schema": INFO_SCHEMA, **facts})


def _shares(alert: Alert) -> list[tuple[str, float]]:
    """Shares rounded to 4 places that still sum to 1."""
    rounded = [(name, round(share, 4)) for name, share in alert.contributions]
    rest = round(1.0 - sum(share for _, share in rounded[1:]), 4)
    return [(rounded[0][0], rest), *rounded[1:]]


def _is_news(name: str, alert: Alert) -> bool:
    value, expected = alert.value[name], alert.expected[name]
    return value is None or expected is None or _number(value) != _number(expected)


def _told(name: str, alert: Alert) -> str:
    value, expected = alert.value[name], alert.expected[name]
    if value is None:
        return f"{name} is missing"
    return f"{name} is {_number(value)}" + ("" if expected is None else f", expected {_number(expected)}")


def _number(value: float) -> str:
    return f"{value:.4g}"


def _round(value: float) -> float:
    return round(value, 4)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else _round(value)


def _rounded(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Six significant digits: more would be noise of the arithmetic."""
    return {name: None if value is None else float(f"{value:.6g}") for name, value in values.items()}


def duration(seconds: float) -> str:
    """Seconds in words, in at most two units: "3 h 20 min"."""
    whole = round(seconds)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if whole >= size:
            below = whole % size * _PER[unit] // size
            return f"{whole // size} {unit}" + (f" {below} {_BELOW[unit]}" if below else "")
    return f"{whole} s"


_BELOW = {"d": "h", "h": "min", "min": "s"}
_PER = {"d": 24, "h": 60, "min": 60}
