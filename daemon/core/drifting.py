"""Alerts of slow drift: one a device, open for as long as the device is not back at its first days.

What has drifted is found out in training rounds, see `gruard.models.drift`; no reading raises such an alert.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gruard.daemon.core.alerts import alert_id as id_of
from gruard.daemon.core.alerts import severity_of
from gruard.daemon.core.payloads import duration
from gruard.daemon.core.telling import unexplained

if TYPE_CHECKING:
    from gruard.daemon.core.devices import Device
    from gruard.daemon.core.events import Alert
    from gruard.daemon.core.groups import Group
    from gruard.daemon.records import AlertState
    from gruard.models.drift import Drift

#: The score of a drift that is as far as is allowed.
DRIFTED = 0.5


def follow_drift(device: Device, group: Group, drift: Drift | None, instance: str) -> Alert | None:
    """Move a device's alert of drift past one comparison with its first days; None where none is open."""
    alert_id = device.drift_id
    state: AlertState = "updated"
    if drift is None:
        device.drift_id, state = "", "resolved"
    elif not alert_id:
        state, device.drift_since_s = "opened", device.last_s
        alert_id = id_of(instance, f"{device.name}\0drift", device.last_s, device.count)
        device.drift_id = alert_id
    return _told(device, group, drift, alert_id=alert_id, state=state) if alert_id else None


def _told(device: Device, group: Group, drift: Drift | None, *, alert_id: str, state: AlertState) -> Alert:
    """What is told of slow drift; None: there is none any more."""
    nothing: dict[str, float | None] = dict.fromkeys(group.fields)
    long = duration(device.last_s - device.drift_since_s)
    alert = unexplained(device, group, alert_id=alert_id, state=state, opened_s=device.drift_since_s)
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
