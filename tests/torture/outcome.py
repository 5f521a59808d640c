"""What a run came to: counted readings, memory, alerts; of a state directory or of a run without faults."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from torture.truth import FIELDS, LEVELS, mode_of

from gruard.daemon import wiring
from gruard.daemon.core.engine import Engine, group_name
from gruard.daemon.core.events import Alert
from gruard.daemon.core.flags import REPLAYED, sequence_of
from gruard.daemon.core.payloads import alert_payload
from gruard.daemon.edges.database import open_database, open_readonly
from gruard.daemon.edges.history import HIGHEST_LSN
from gruard.daemon.inspection import ALL_ROWS, switches
from gruard.daemon.pipeline import Pipeline
from gruard.daemon.records import Reading
from gruard.models.group import Phase

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gruard.daemon.edges.database import Database
    from gruard.daemon.edges.history import Reader
    from gruard.daemon.inspection import Switch
    from gruard.daemon.settings import Settings

#: Rows of a device that the reference run is fed with between two looks at its events.
_CHUNK = 20


@dataclass(slots=True, eq=False)
class Counted:
    """One device's readings in the order in which they changed its state."""

    time_s: np.ndarray  # (T,)
    received_s: np.ndarray  # (T,)
    values: np.ndarray  # (T, F) physical units
    score: np.ndarray  # (T,) NaN = none
    flags: np.ndarray  # (T,)

    def __len__(self) -> int:
        return len(self.time_s)


@dataclass(slots=True)
class Outcome:
    """Everything that must come out the same, whatever happened on the way."""

    counted: dict[str, Counted]
    memory: dict[str, dict[str, np.ndarray]]  # device -> column of its state -> row
    known: dict[str, dict[str, Any]]  # device -> what the engine knows of it beside its numbers
    alerts: dict[str, dict[str, Any]]  # id -> newest word on the alert
    events: list[dict[str, Any]] = field(default_factory=list)  # every alert event, in order


def journalled(directory: Path, names: Sequence[str]) -> dict[str, Counted]:
    """What a state directory says was counted."""
    counted = {}
    with open_readonly(directory) as reader:
        for name in names:
            rows = reader.history(name, FIELDS, ALL_ROWS)
            arrived_s = _arrivals(reader, name)
            counted[name] = Counted(rows.time_s, arrived_s, rows.values, rows.score, rows.flags)
        if reader.skipped_rows:
            raise AssertionError(f"{reader.skipped_rows} damaged rows in {directory}")
    return counted


def _arrivals(reader: Reader, device: str) -> np.ndarray:
    """When each reading of a device's history arrived (T,): history itself has no use for it."""
    runs = []
    with reader._snapshot():
        reader._catch_up()
        for identity, packed in reader._all("SELECT id, packed_lsn FROM devices WHERE device = ?", (device,)):
            pending = reader._tail.between(identity, packed + 1, HIGHEST_LSN)
            runs += reader._tail_runs(device, pending, _CHUNK)
            runs += reader._pack_runs(device, identity, 0, HIGHEST_LSN)
    return np.concatenate([np.zeros(0), *(records["received_s"] for _, records in reversed(runs))])


def recovered(directory: Path, settings: Settings, names: Sequence[str]) -> Outcome:
    """Start on a copy of a state directory as the daemon would, and take out everything."""
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        copy = Path(folder, "state")
        shutil.copytree(directory, copy)
        counted = journalled(copy, names)
        with open_database(copy, now_s=time.time()) as database:
            if database.set_aside is not None:
                raise AssertionError(f"{directory} was found damaged")
            pipeline = _pipeline(database, copy, settings)
            pipeline.recover()
            alerts = {row.id: json.loads(row.payload) for row in database.alerts(ALL_ROWS)}
            return Outcome(counted, _memory(pipeline.engine), _known(pipeline.engine), alerts)


def uninterrupted(readings: Mapping[str, Counted], settings: Settings, followed: Path | None) -> Outcome:
    """Run readings through the pipeline as if nothing had ever happened; their scores are not looked at.

    `followed`: a state directory whose changes of weights are repeated after as many readings of each device.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torture-")))
        database = stack.enter_context(open_database(folder, now_s=time.time()))
        run = _Run(_pipeline(database, folder, settings), readings)
        for switch in [] if followed is None else switches(followed):
            run.adopt(switch)
        run.feed({name: len(rows) for name, rows in readings.items()})
        engine = run.pipeline.engine
        counted = journalled(folder, list(readings))
        return Outcome(counted, _memory(engine), _known(engine), run.newest, run.events)


class _Run:
    """A reference run on its way."""

    def __init__(self, pipeline: Pipeline, readings: Mapping[str, Counted]) -> None:
        self.pipeline, self._readings = pipeline, readings
        self.events: list[dict[str, Any]] = []
        self.newest: dict[str, dict[str, Any]] = {}
        self._fed = dict.fromkeys(readings, 0)

    def adopt(self, switch: Switch) -> None:
        """Let a model take charge after as many readings of its devices as in the run that is followed."""
        self.feed({name: shown for name, shown in switch.shown.items() if name in self._readings})
        self.pipeline.adopt(switch.package, "followed")

    def feed(self, upto: Mapping[str, int]) -> None:
        """Go on to so many readings of each device."""
        while True:
            wave = []
            for name, end in upto.items():
                first = self._fed[name]
                last = min(first + _CHUNK, end)
                wave += [self._reading(name, n) for n in range(first, last)]
                self._fed[name] = max(first, last)
            if not wave:
                return
            self.pipeline.feed(wave)
            while self.pipeline.backlog:
                for event in self.pipeline.advance():
                    if isinstance(event, Alert):
                        self._note(event)
                self.pipeline.settle()
            self.pipeline.commit()

    def _reading(self, name: str, n: int) -> Reading:
        rows = self._readings[name]
        flags = int(rows.flags[n])
        return Reading(
            name,
            LEVELS[mode_of(name)],
            float(rows.time_s[n]),
            float(rows.received_s[n]),
            dict(zip(FIELDS, rows.values[n].tolist(), strict=True)),
            sequence=sequence_of(flags),
            replayed=bool(flags & REPLAYED),
        )

    def _note(self, alert: Alert) -> None:
        note = self.pipeline.note_of(alert.model, alert.group)
        event = json.loads(alert_payload(alert, note, self.pipeline.engine.options.instance))
        self.events.append(event)
        self.newest[event["id"]] = event


def _pipeline(database: Database, directory: Path, settings: Settings) -> Pipeline:
    """The daemon's own pipeline, without training: models only come from a run that is followed."""
    return Pipeline(
        Engine(wiring.engine_options(settings)),
        database,
        directory,
        replace(wiring.training_settings(settings), every_s=None),
        base=settings.alerts.base,
        wall=time.time,
        monotonic=time.monotonic,
    )


def _memory(engine: Engine) -> dict[str, dict[str, np.ndarray]]:
    """The live part of every device's row in the arena: the side that is not in charge holds leftovers."""
    memory = {}
    for name, device in engine.devices.items():
        group = engine.groups[group_name(device.source, device.fields)]
        arena, slot = group.scorer._arena, group.devices[name]
        side = "model" if arena["phase"][slot] == Phase.READY else "baseline"
        columns = [*arena._blocks["device"].columns, *arena._blocks[side].columns]
        memory[name] = {column: np.array(arena[column][slot]) for column in columns}
    return memory


def _known(engine: Engine) -> dict[str, dict[str, Any]]:
    return {name: msgspec.to_builtins(device) for name, device in engine.devices.items()}
