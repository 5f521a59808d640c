"""What the state directory knows, for people and scripts, whether the daemon runs or not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from gruard.daemon.core.devices import Device
from gruard.daemon.core.engine import group_name, open_state
from gruard.daemon.core.payloads import rfc3339
from gruard.daemon.edges.database import open_readonly
from gruard.daemon.edges.trainer import MODELS
from gruard.daemon.errors import StateError
from gruard.models import weights
from gruard.models.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from gruard.daemon.edges.rows import ModelRow
    from gruard.daemon.settings import Settings
    from gruard.models.weights import ModelPackage

#: More rows than a device can have.
ALL_ROWS = 2**31
#: Alerts listed at most.
MOST_ALERTS = 1000


@dataclass(frozen=True, slots=True)
class Switch:
    """A model that went live, and how many readings each device of its group had shown by then."""

    package: ModelPackage
    shown: dict[str, int]


def switches(directory: Path) -> list[Switch]:
    """Every change of weights that a state directory recorded, oldest first; none without a database.

    A model whose weights cannot be read any more is left out.
    """
    try:
        reader = open_readonly(directory)
    except StateError:
        return []
    with reader:
        known = reader.devices()
        models = [(row.activated_lsn, row) for row in reader.models() if row.activated_lsn is not None]
        found = []
        for lsn, row in sorted(models, key=lambda pair: pair[0]):
            try:
                package = weights.read(directory / MODELS, row.id)
            except ModelError:
                continue
            shown = {
                d.device: d.readings - len(reader.history(d.device, d.fields, ALL_ROWS, min_lsn=lsn).lsn)
                for d in known
                if group_name(d.source, d.fields) == row.group
            }
            found.append(Switch(package, shown))
    return found


def devices(settings: Settings) -> list[dict[str, Any]]:
    """One row a device; StateError where there is no database yet."""
    with open_readonly(settings.state.directory) as reader:
        known = {}
        alarmed = {row.device for row in reader.alerts(ALL_ROWS, open_only=True)}
        for checkpoint in reader.checkpoints():
            try:
                known[checkpoint.device] = open_state(checkpoint.state)[0]
            except msgspec.DecodeError:
                continue  # the daemon rebuilds it from the journal
        rows = []
        for row in reader.devices():
            newest = reader.history(row.device, row.fields, 1)
            device = known.get(row.device, Device(row.device, row.source))
            score = float(newest.score[-1]) if len(newest.score) else math.nan
            rows.append(
                {
                    "device": row.device,
                    "group": group_name(row.source, row.fields),
                    "state": device.phase,
                    "readings": row.readings,
                    "last_time": None if row.last_s is None else rfc3339(row.last_s),
                    "score": None if math.isnan(score) else round(score, 4),
                    "alarm": row.device in alarmed,
                    "borrowed": round(device.borrowed, 2),
                    "head": device.head,
                    **_milestones(device),
                }
            )
    return sorted(rows, key=lambda row: str(row["device"]))


def _milestones(device: Device) -> dict[str, Any]:
    """Seconds from its first reading until a device was scored, and was ready; None: not yet, or unknown."""
    ready_at = None
    if device.first_s is not None and device.ready_s is not None:
        ready_at = rfc3339(device.first_s + device.ready_s)
    return {"first_score_s": device.first_score_s, "ready_s": device.ready_s, "ready_at": ready_at}


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


def models(settings: Settings) -> list[dict[str, Any]]:
    """One row a model that has been in charge, newest first; StateError where there is no database yet."""
    with open_readonly(settings.state.directory) as reader:
        return [_model_row(row) for row in reversed(reader.models())]


def model(settings: Settings, identity: str) -> dict[str, Any]:
    """All that is known of the one model whose id is, or begins with, `identity`.

    Raises:
        StateError: there is no database yet, or not exactly one such model in it.
    """
    with open_readonly(settings.state.directory) as reader:
        found = [row for row in reader.models() if row.id.startswith(identity)]
    if len(found) != 1:
        what = "No model" if not found else f"More than one model ({', '.join(row.id for row in found)})"
        raise StateError(f'{what} has an id that begins with "{identity}". See `gruard models list`.')
    (row,) = found
    try:
        weights.read(settings.state.directory / MODELS, row.id)
        sound = "sound"
    except ModelError as error:
        sound = str(error)
    manifest = msgspec.json.decode(row.manifest)
    shown = ("source", "fields", "cell", "hidden", "layers", "rows", "devices", "report", "sha256")
    spans = {name: rfc3339(manifest[f"{name}_s"]) for name in ("span_start", "span_end")}
    return _model_row(row) | {"weights": sound} | spans | {name: manifest[name] for name in shown}


def _model_row(row: ModelRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "state": row.status,
        "group": row.group,
        "trained_at": rfc3339(row.created_s),
        "activated_at": None if row.activated_s is None else rfc3339(row.activated_s),
        "skill": None if row.skill is None else round(row.skill, 4),
        "parent": row.parent,
        "reason": row.reason,
    }
