"""What the state directory knows, for people and scripts, whether the daemon runs or not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from gruard.daemon.core.devices import Device
from gruard.daemon.core.engine import group_name, open_state
from gruard.daemon.core.payloads import rfc3339
from gruard.daemon.core.words import standing
from gruard.daemon.edges.database import open_readonly
from gruard.daemon.edges.trainer import MODELS
from gruard.daemon.errors import StateError
from gruard.daemon.feedback import row_of
from gruard.models import weights
from gruard.models.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from gruard.daemon.edges.rows import ModelRow
    from gruard.daemon.settings import Settings
    from gruard.models.weights import ModelPackage

#: More rows than a device can have.
ALL_ROWS = 2**31
#: Devices shown at most of each kind of change between two models.
MOST_MOVED = 5
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
        verdicts = {word.alert: word.verdict for word in standing(reader.words()) if word.alert is not None}
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
                "verdict": verdicts.get(row.id),
                "muted": payload.get("muted", False),
                "message": payload["message"],
            }
            for row in reader.alerts(MOST_ALERTS)
            for payload in [msgspec.json.decode(row.payload)]
        ]


def feedback(settings: Settings) -> list[dict[str, Any]]:
    """One row a word of an operator, newest first; StateError where there is no database yet."""
    with open_readonly(settings.state.directory) as reader:
        said = reader.words()
    stands = {word.id for word in standing(said)}
    return [row_of(word) | {"stands": word.id in stands} for word in reversed(said)]


def models(settings: Settings) -> list[dict[str, Any]]:
    """One row a model that has been in charge, newest first; StateError where there is no database yet."""
    with open_readonly(settings.state.directory) as reader:
        return [_model_row(row) for row in reversed(reader.models())]


def model(settings: Settings, identity: str) -> dict[str, Any]:
    """All that is known of the one model whose id is, or begins with, `identity`.

    Raises:
        StateError: there is no database yet, or not exactly one such model in it.
    """
    row = _row_of(settings, identity)
    if row.status == "rejected":
        return _model_row(row) | {"weights": "not kept"}
    try:
        weights.read(settings.state.directory / MODELS, row.id)
        sound = "sound"
    except ModelError as error:
        sound = str(error)
    manifest = msgspec.json.decode(row.manifest)
    shown = ("source", "fields", "cell", "hidden", "layers", "rows", "devices", "report", "sha256")
    spans = {name: rfc3339(manifest[f"{name}_s"]) for name in ("span_start", "span_end")}
    return _model_row(row) | {"weights": sound} | spans | {name: manifest[name] for name in shown}


def difference(settings: Settings, first: str, second: str) -> dict[str, Any]:
    """What differs between two models of the registry: facts of their manifests, and what moved most.

    Of each device that both know, `moved` has the largest relative change of its level, quantiles and
    scales: {"device", "what", "first", "second"}, at most MOST_MOVED of each kind.

    Raises:
        StateError: there is no database yet, not exactly one such model in it, or its weights cannot be read.
    """
    packages = []
    for identity in (first, second):
        row = _row_of(settings, identity)
        try:
            packages.append(weights.read(settings.state.directory / MODELS, row.id))
        except ModelError as error:
            raise StateError(f"The weights of {row.id} cannot be read: {error}.") from None
    a, b = packages
    facts = {}
    for name in ("id", "group", "cell", "hidden", "layers", "rows", "skill", "parent"):
        facts[name] = [getattr(a.manifest, name), getattr(b.manifest, name)]
    for name in ("created", "span_start", "span_end"):
        facts[name] = [rfc3339(getattr(p.manifest, f"{name}_s")) for p in packages]
    facts["devices"] = [len(p.manifest.devices) for p in packages]
    for name in sorted(a.manifest.report | b.manifest.report):
        facts[f"report.{name}"] = [p.manifest.report.get(name) for p in packages]
    come = sorted(set(b.manifest.devices) - set(a.manifest.devices))
    gone = sorted(set(a.manifest.devices) - set(b.manifest.devices))
    differing = {name: pair for name, pair in facts.items() if pair[0] != pair[1]}
    return {"differs": differing, "devices_come": come, "devices_gone": gone, "moved": _moved(a, b)}


def _moved(a: ModelPackage, b: ModelPackage) -> list[dict[str, Any]]:
    both = [name for name in a.manifest.devices if name in set(b.manifest.devices)]
    if not both:
        return []
    rows = [np.array([p.manifest.devices.index(name) for name in both]) for p in (a, b)]
    found = []
    for kind in ("level", "quantile", "scale", "location"):
        name = weights.DEVICE_PREFIX + kind
        old, new = (np.asarray(p.tensors[name][at], float) for p, at in zip((a, b), rows, strict=True))
        if old.shape != new.shape:
            continue  # other fields or horizons
        flat = [each.reshape(len(both), -1) for each in (old, new)]
        change = np.abs(flat[1] - flat[0]) / np.maximum(np.abs(flat[0]), 1e-9)
        most = change.argmax(axis=1)
        largest = change[np.arange(len(both)), most]
        for n in np.argsort(-largest, kind="stable")[:MOST_MOVED]:
            if largest[n] > 0:
                before, after = (round(float(each[n, most[n]]), 6) for each in flat)
                found.append({"device": both[n], "what": kind, "first": before, "second": after})
    return found


def _row_of(settings: Settings, identity: str) -> ModelRow:
    with open_readonly(settings.state.directory) as reader:
        found = [row for row in reader.models() if row.id.startswith(identity)]
    if len(found) != 1:
        what = "No model" if not found else f"More than one model ({', '.join(row.id for row in found)})"
        raise StateError(f'{what} has an id that begins with "{identity}". See `gruard models list`.')
    return found[0]


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
