"""What the state directory knows, for people and scripts, whether the daemon runs or not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from gruard.daemon.core.engine import group_name, open_state
from gruard.daemon.core.payloads import rfc3339
from gruard.daemon.edges.database import open_readonly

if TYPE_CHECKING:
    from gruard.daemon.settings import Settings

#: Alerts listed at most.
MOST_ALERTS = 1000


def devices(settings: Settings) -> list[dict[str, Any]]:
    """One row a device; StateError where there is no database yet."""
    with open_readonly(settings.state.directory) as reader:
        phases = {}
        for checkpoint in reader.checkpoints():
            try:
                phases[checkpoint.device] = open_state(checkpoint.state)[0].phase
            except msgspec.DecodeError:
                continue  # the daemon rebuilds it from the journal
        rows = []
        for row in reader.devices():
            newest = reader.history(row.device, row.fields, 1)
            score = float(newest.score[-1]) if len(newest.score) else math.nan
            rows.append(
                {
                    "device": row.device,
                    "group": group_name(row.source, row.fields),
                    "state": phases.get(row.device, "warming"),
                    "readings": row.readings,
                    "last_time": None if row.last_s is None else rfc3339(row.last_s),
                    "score": None if math.isnan(score) else round(score, 4),
                    "alarm": bool(newest.flags[-1]) if len(newest.flags) else False,
                }
            )
    return sorted(rows, key=lambda row: str(row["device"]))


def alerts(settings: Settings) -> list[dict[str, Any]]:
    """One row an alert, newest first; StateError where there is no database yet."""
    with open_readonly(settings.state.directory) as reader:
        return [
            {
                "id": row.id,
                "state": row.state,
                "severity": row.severity,
                "device": row.device,
                "opened_at": rfc3339(row.opened_s),
                "time": rfc3339(row.updated_s),
                "score": round(row.score, 4),
                "threshold": round(row.threshold, 4),
                "message": msgspec.json.decode(row.payload)["message"],
            }
            for row in reader.alerts(MOST_ALERTS)
        ]
