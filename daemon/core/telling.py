"""From a device's state and scores to what is told of its alert."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from gruard.daemon.core.alerts import severity_of
from gruard.daemon.core.events import Alert
from gruard.daemon.core.payloads import duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from gruard.daemon.core.devices import Device
    from gruard.daemon.core.groups import Group
    from gruard.daemon.records import AlertKind, AlertState, Reading, Severity
    from gruard.models.drift import Drift
    from gruard.models.group import Scores

#: The score of a drift that is as far as is allowed.
DRIFTED = 0.5


def alert_of(
    device: Device,
    group: Group,
    reading: Reading,
    scores: Scores,
    n: int,
    *,
    alert_id: str,
    state: AlertState,
    severity: Severity,
    model: str,
) -> Alert:
    """The event that a reading made, the n-th of those scored together; `reading` is the device's newest."""
    reasons = scores.reasons
    lasted = state == "resolved" and bool(scores.lasted[n])
    shares = zip(group.fields, reasons.share[n].tolist(), strict=True)
    return Alert(
        id=alert_id,
        state=state,
        severity=severity,
        device=device.name,
        source=group.source,
        group=group.name,
        time_s=device.last_s,
        opened_s=device.track.opened_s,
        score=float(scores.score[n]),
        threshold=float(scores.threshold[n]),
        value={name: reading.values.get(name) for name in group.fields},
        expected=_by_field(group.fields, reasons.expected[n]),
        deviation=_by_field(group.fields, reasons.deviation[n]),
        contributions=tuple(sorted(shares, key=lambda share: -share[1])),
        model=model,
        late_s=reading.received_s - reading.time_s if reading.replayed else None,
        kind="new_normal" if lasted else "anomaly",
        sentence=new_normal(device) if lasted else "",
    )


def new_normal(device: Device) -> str:
    """What to say of an alarm that went on until it was taken for the device's new normal."""
    long = duration(device.last_s - device.track.opened_s)
    return f"{device.name} has been unusual for {long}: from now on that is its new normal."


def drift_alert(
    device: Device, group: Group, drift: Drift | None, *, alert_id: str, state: AlertState
) -> Alert:
    """What is told of slow drift; None: there is none any more."""
    nothing: dict[str, float | None] = dict.fromkeys(group.fields)
    long = duration(device.last_s - device.drift_since_s)
    alert = _unexplained(device, group, alert_id=alert_id, state=state, opened_s=device.drift_since_s)
    if drift is None:
        back = f"{device.name} is back at what it showed in its first days, after {long}."
        return replace(alert, kind="drift", sentence=back)
    score = drift.excess**2 / (1.0 + drift.excess**2)
    bound = drift.low if drift.now < drift.low else drift.high
    level = drift.kind == "level"
    shares = [(drift.field, 1.0), *((name, 0.0) for name in group.fields if name != drift.field)]
    return replace(
        alert,
        kind="drift",
        severity=severity_of(score, DRIFTED, learning=True),
        score=score,
        threshold=DRIFTED,
        value=nothing | {drift.field: drift.now} if level else nothing,
        expected=nothing | {drift.field: bound} if level else nothing,
        deviation=nothing | {drift.field: drift.now - bound} if level else nothing,
        contributions=tuple(shares),
        sentence=f"{device.name} has drifted: {_DRIFTS[drift.kind].format(d=drift)} in its first days.",
    )


_DRIFTS = {
    "level": "{d.field} is about {d.now:.4g}, and lay between {d.low:.4g} and {d.high:.4g}",
    "spread": "{d.field} spreads by {d.now:.4g} within a short while, and by {d.high:.4g} at most",
    "forecast": "{d.field} is off its forecasts by {d.now:.4g}, and was by {d.high:.4g} at most",
}


def last_word(
    device: Device, group: Group, time_s: float, *, alert_id: str, since_s: float, kind: AlertKind
) -> Alert:
    """The end of an open alert of a device that is removed."""
    opened_s = min(since_s, time_s)
    silent, lasted = duration(time_s - device.last_s), duration(time_s - opened_s)
    alert = _unexplained(device, group, alert_id=alert_id, state="resolved", opened_s=opened_s)
    told = f"{device.name} is watched no more, silent for {silent}: its alert ends after {lasted}."
    return replace(alert, kind=kind, time_s=time_s, sentence=told)


def _unexplained(device: Device, group: Group, *, alert_id: str, state: AlertState, opened_s: float) -> Alert:
    """An event that no reading explains."""
    unknown: dict[str, float | None] = dict.fromkeys(group.fields)
    return Alert(
        id=alert_id,
        state=state,
        severity="info",
        device=device.name,
        source=group.source,
        group=group.name,
        time_s=device.last_s,
        opened_s=opened_s,
        score=0.0,
        threshold=0.0,
        value=unknown,
        expected=unknown,
        deviation=unknown,
        contributions=tuple((name, 1.0 / len(group.fields)) for name in group.fields),
        model=group.model,
    )


def _by_field(fields: Sequence[str], values: NDArray[np.float64]) -> dict[str, float | None]:
    """Numbers by field; what is missing or not finite is None, never NaN."""
    return {n: (v if math.isfinite(v) else None) for n, v in zip(fields, values.tolist(), strict=True)}
