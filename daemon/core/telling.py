"""From a device's state and scores to what is told of its alert."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from gruard.daemon.core.events import Alert
from gruard.daemon.core.payloads import duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from gruard.daemon.core.devices import Device
    from gruard.daemon.core.groups import Group
    from gruard.daemon.records import AlertKind, AlertState, Reading, Severity
    from gruard.models.group import Scores


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


def last_word(
    device: Device, group: Group, time_s: float, *, alert_id: str, since_s: float, kind: AlertKind
) -> Alert:
    """The end of an open alert of a device that is removed."""
    opened_s = min(since_s, time_s)
    silent, lasted = duration(time_s - device.last_s), duration(time_s - opened_s)
    alert = unexplained(device, group, alert_id=alert_id, state="resolved", opened_s=opened_s)
    told = f"{device.name} is watched no more, silent for {silent}: its alert ends after {lasted}."
    return replace(alert, kind=kind, time_s=time_s, sentence=told)


def unexplained(device: Device, group: Group, *, alert_id: str, state: AlertState, opened_s: float) -> Alert:
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
