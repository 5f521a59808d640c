"""A scripted life of the durable path, run again and again, each time with another disk operation failing.

    python steps.py FOLDER FIRST STRIDE     one JSON line a run: what failed, and what was wrong after it

Runs under the shim, each run in a process of its own that ends without saying goodbye. Messages come in
groups, as from a broker that sends again what was not acknowledged; a group is scored, committed and
acknowledged. In between: checkpoints, pruning, publishing of alerts, a change of weights and a restart.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support_engine import BUDGET, SOURCE, plant_rows
from support_models import random_tensors
from support_shim import NEVER, Kind, Shim

from gruard.daemon.commands import Commands
from gruard.daemon.core.deliveries import Deliveries
from gruard.daemon.core.engine import Engine, EngineOptions, group_name
from gruard.daemon.core.sources import Sources
from gruard.daemon.edges.database import DATABASE_NAME, Database, open_database, open_readonly
from gruard.daemon.edges.metrics import Metrics
from gruard.daemon.edges.trainer import MODELS
from gruard.daemon.errors import StateError
from gruard.daemon.intake import Intake
from gruard.daemon.pipeline import Pipeline, TrainingSettings
from gruard.daemon.records import Message
from gruard.models import weights
from gruard.models.evidence import SCALES

if TYPE_CHECKING:
    from collections.abc import Callable

DEVICES: Final = ("pump-1", "pump-2")
FIELDS: Final = ("f0", "f1", "f2")
ROWS, GROUP = 120, 4  # rows of each device, and how many of them are committed together
SWITCH_AT, RESTART_AT = 80, 72  # rows of each device before new weights take charge, before a restart
MOST_ROWS = 50
START_S = 1_600_000_000.0
#: How often the daemon in this story asks a disk that refuses before the story goes on.
PATIENCE = 3
FAULTS: Final = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "short": 0, "half": errno.EIO}
#: A fault strikes once; lasts until it is mended under the running daemon; lasts until the daemon is killed.
LASTING: Final = ("once", "mended", "killed")


def script() -> list[list[Message]]:
    """The groups of messages, as they are sent the first time."""
    rows = [plant_rows(ROWS, seed) for seed in range(len(DEVICES))]
    for faulty in rows:
        faulty[56:64, 1] += 25.0
        faulty[92:104, 0] += 25.0
    groups: list[list[Message]] = []
    number = 0
    for first in range(0, ROWS, GROUP):
        groups.append([])
        for t in range(first, first + GROUP):
            for device, values in zip(DEVICES, rows, strict=True):
                number += 1
                fields = dict(zip(FIELDS, map(float, values[t]), strict=True))
                payload = json.dumps({"ts": START_S + t, **fields}).encode()
                groups[-1].append(
                    Message(f"plant/{device}", payload, START_S + t, qos=1, packet_id=number, session=1)
                )
    return groups


def package() -> weights.ModelPackage:
    config, tensors = random_tensors(len(FIELDS))
    devices, lines = len(DEVICES), len(tensors["precision"])
    tensors |= {
        "device.location": np.full((devices, len(FIELDS)), 20.0),
        "device.scale": np.full((devices, len(FIELDS)), 2.0),
        "device.median": np.full((devices, lines, len(SCALES)), 0.5),
        "device.quantile": np.full((devices, lines, len(SCALES)), 2.0),
        "device.level": np.full(devices, 4.0),
        "device.skill": np.full(devices, 0.5),
    }
    return weights.seal(
        tensors=tensors,
        group=group_name(SOURCE.name, FIELDS),
        source=SOURCE.name,
        fields=FIELDS,
        cell=config.cell,
        hidden=config.hidden,
        layers=config.layers,
        created_s=START_S,
        parent=None,
        span_start_s=START_S,
        span_end_s=START_S + SWITCH_AT,
        rows=SWITCH_AT,
        devices=DEVICES,
        skill=0.5,
        report={},
    )


SCRIPT, PACKAGE = script(), package()
MOST_STARTS: Final = 3
ALL_TIMES: Final = [START_S + t for t in range(ROWS)]


@dataclass
class Told:
    """What the world outside has been told: it cannot be taken back."""

    acked: int = 0  # groups
    alerts: list[tuple[str, str]] = field(default_factory=list)  # id, state
    wrong: list[str] = field(default_factory=list)


class Life:
    """One start of the daemon over the folder, until it ends."""

    def __init__(self, folder: Path, told: Told, mend: Callable[[], None], shim: Shim) -> None:
        self.folder, self.told, self._mend, self._shim = folder, told, mend, shim
        self._open = ExitStack()
        self.database: Database = self._open.enter_context(open_database(folder, now_s=START_S))
        if self.database.set_aside is not None:
            told.wrong.append("a sound database was set aside")
        try:
            options = EngineOptions((SOURCE,), BUDGET)
            self.pipeline = Pipeline(
                Engine(options),
                self.database,
                folder,
                TrainingSettings(every_s=None),
                base="gruard",
                wall=lambda: START_S,
                monotonic=time.monotonic,
            )
            self.pipeline.recover()
            deliveries = Deliveries(self.database.deliveries())
            metrics = Metrics(version="test")
            commands = Commands(self.pipeline, folder, "gruard", metrics)
            self._intake = Intake(Sources(options.sources), deliveries, self.pipeline, metrics, commands)
        except BaseException:
            self._open.close()
            raise

    def close(self) -> None:
        self._open.close()

    def serve(self, until: int, *, again: bool) -> None:
        """Take groups up to `until`; `again`: the broker has sent what comes next before."""
        pipeline, told = self.pipeline, self.told
        for number in range(told.acked, until):
            if number * GROUP == SWITCH_AT and not pipeline.models:
                self._switch()
            messages = SCRIPT[number]
            if again:
                messages = [replace(message, duplicate=True) for message in messages]
            self._intake.take(deque(messages), crowded=False)
            while pipeline.backlog:
                self._insist(pipeline.advance)
            self._insist(pipeline.commit)
            if self._shim.unsynced:
                told.wrong.append(f"group {number} is acknowledged and its log is not synced")
            told.acked = number + 1
            if number % 5 == 4:
                self._insist(pipeline.checkpoint)
            # Not before the switch: how far pruning has come would decide on what devices are re-warmed.
            if number % 2 and number * GROUP > SWITCH_AT:
                self._insist(lambda: pipeline.prune(MOST_ROWS))
            self._publish()

    def _publish(self) -> None:
        with suppress(StateError):  # an outbox that cannot be read now is read next time
            for row in self.database.outbox(64):
                if not self.pipeline.pending.is_delivered(row.seq):
                    self.told.alerts.append((row.key, json.loads(row.payload)["state"]))
                    self.pipeline.pending.delivered([row.seq])

    def _switch(self) -> None:
        models = self.folder / MODELS
        self._insist(lambda: models.mkdir(exist_ok=True))
        self._insist(lambda: weights.write(models, PACKAGE))
        while not self.pipeline.models:
            self._insist(lambda: self.pipeline.adopt(PACKAGE, "first"))
        self._insist(self.pipeline.commit)

    def _insist(self, call: Callable[[], object]) -> None:
        """What the daemon does about a disk that refuses: the same again, until its patience ends."""
        for attempt in range(PATIENCE):
            try:
                call()
            except (StateError, OSError):
                if attempt == PATIENCE - 1:
                    raise
                if attempt == PATIENCE - 2:
                    self._mend()
            else:
                return


@dataclass
class Outcome:
    """What a run that came to its end leaves behind."""

    scores: dict[str, list[float]]
    memory: dict[str, list[float]]
    outbox: int


def story(folder: Path, mend: Callable[[], None], shim: Shim, told: Told, *, again: bool) -> Outcome:
    """From a start to the end of the script, with one restart on the way."""
    restart_at = RESTART_AT // GROUP
    life = Life(folder, told, mend, shim)
    if told.acked < restart_at:
        life.serve(restart_at, again=again)
        life.close()
        life = Life(folder, told, mend, shim)
    life.serve(len(SCRIPT), again=again)
    engine, database = life.pipeline.engine, life.database
    memory = {}
    for group in engine.groups.values():
        for device, slot in group.devices.items():
            arena = group.scorer._arena
            columns = [*arena._blocks["device"].columns, *arena._blocks["model"].columns]
            parts = [np.asarray(arena[name][slot], np.float64).ravel() for name in columns]
            memory[device] = np.concatenate(parts).tolist()
    scores = {device: database.history(device, FIELDS, ROWS).score.tolist() for device in DEVICES}
    outcome = Outcome(scores, memory, database.outbox_pending())
    life.close()
    return outcome


def in_a_child(told: Told, run: Callable[[Told], Outcome]) -> tuple[Told, Outcome | None]:
    """Let a process run that ends without any farewell; what it told, and what it left if it came so far."""
    out, in_ = os.pipe()
    child = os.fork()
    if child == 0:
        outcome = None
        try:
            outcome = run(told)
        except (StateError, OSError):
            pass  # an end by the disk, and a clean one
        except BaseException as error:  # noqa: BLE001 - told to the parent
            told.wrong.append(f"ended by {error!r}")
        with os.fdopen(in_, "wb") as pipe:
            pipe.write(json.dumps([asdict(told), outcome and asdict(outcome)]).encode())
        os._exit(0)
    os.close(in_)
    with os.fdopen(out, "rb") as pipe:
        after, outcome = json.loads(pipe.read())
    os.waitpid(child, 0)
    after["alerts"] = [(key, state) for key, state in after["alerts"]]
    return Told(**after), None if outcome is None else Outcome(**outcome)


def missing(folder: Path, told: Told) -> list[str]:
    """What is wrong with the database of a daemon that died: acknowledged readings lost, or half a group."""
    if not told.acked and not (folder / DATABASE_NAME).exists():
        return []
    wrong, counts = [], set()
    with open_readonly(folder) as reader:
        readings = {row.device: row.readings for row in reader.devices()}
        for device in DEVICES:
            counts.add(count := readings.get(device, 0))
            times = reader.history(device, FIELDS, ROWS).time_s.tolist()
            if times != ALL_TIMES[count - len(times) : count]:
                wrong.append(f"{device} has other readings than the {count} that it counts")
    if len(counts) > 1 or any(count % GROUP for count in counts):
        wrong.append(f"half a group: {counts}")
    if not told.acked <= max(counts) // GROUP <= told.acked + 1:
        wrong.append(f"{told.acked} groups are acknowledged, and {counts} readings are there")
    return wrong


def different(reference: tuple[Told, Outcome], told: Told, outcome: Outcome) -> list[str]:
    """How a run differs from the one without faults."""
    expected, good = reference
    wrong = []
    if list(dict.fromkeys(told.alerts)) != list(dict.fromkeys(expected.alerts)):
        wrong.append(f"alerts {told.alerts} instead of {expected.alerts}")
    if outcome.outbox:
        wrong.append(f"{outcome.outbox} events still wait")
    for what in ("scores", "memory"):
        for device in DEVICES:
            a, b = (np.array(getattr(one, what)[device]) for one in (good, outcome))
            short = min(len(a), len(b), MOST_ROWS) if what == "scores" else len(a)
            if not np.allclose(a[-short:], b[-short:], rtol=1e-5, atol=1e-5, equal_nan=True):
                wrong.append(f"{what} of {device} differ by {np.nanmax(np.abs(a[-short:] - b[-short:]))}")
    return wrong


def tortured(
    folder: Path, shim: Shim, number: int, fault: str, lasting: str, reference: tuple[Told, Outcome]
) -> tuple[list[str], list[str]]:
    """One run in which operation `number` fails: what failed, and what was wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    shim.arm(Kind.ANY, number, number if lasting == "once" else NEVER, FAULTS[fault], partly=fault == "half")
    mend = shim.disarm if lasting == "mended" else lambda: None
    told, wrong = Told(), []
    for start in range(MOST_STARTS):
        told, outcome = in_a_child(told, partial(story, folder, mend, shim, again=start > 0))
        shim.disarm()  # the cause is gone when the service manager starts it again
        wrong += missing(folder, told)
        if outcome is not None:
            wrong += different(reference, told, outcome)
            break
    else:
        wrong.append(f"not over after {MOST_STARTS} starts")
    return shim.log(), told.wrong + wrong


def main() -> None:
    """Run them all."""
    folder, first, stride = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    shim, state = Shim.of_this_process(), folder / "state"
    shim.arm(Kind.ANY, 0, 0, 0)
    told, outcome = in_a_child(Told(), partial(story, state, lambda: None, shim, again=False))
    steps = shim.count
    assert outcome is not None, told.wrong
    assert not told.wrong, told.wrong
    print(json.dumps({"steps": steps, "alerts": len(told.alerts)}), flush=True)  # noqa: T201 - the answer
    for run, number in enumerate(range(first, steps + 1, stride)):
        lasting = LASTING[run % len(LASTING)]
        for fault in FAULTS if stride == 1 else [list(FAULTS)[run % len(FAULTS)]]:
            failed, wrong = tortured(state, shim, number, fault, lasting, (told, outcome))
            line = {
                "number": number,
                "fault": fault,
                "lasting": lasting,
                "failed": failed[:5],
                "wrong": wrong,
            }
            print(json.dumps(line), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
