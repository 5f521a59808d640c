"""`gruard replay`: the engine on a recording, without a broker. The very pipeline of the daemon.

The first model of a group trains in line, at the reading where the daemon would have begun to train, so a
live run fed with the same readings faster than real time gives the same alerts. Where the switches of a
live run are known, they are followed instead: each model takes charge after as many readings of a device as
it did there.
"""

from __future__ import annotations

import csv
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from gruard.daemon.core.engine import Engine
from gruard.daemon.core.events import Alert, Refused, Scored
from gruard.daemon.core.payloads import alert_payload, rfc3339
from gruard.daemon.edges.database import open_database
from gruard.daemon.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gruard.daemon.core.engine import EngineOptions
    from gruard.daemon.core.events import Event
    from gruard.daemon.inspection import Switch
    from gruard.daemon.pipeline import TrainingSettings
    from gruard.daemon.recording import Recording

#: Readings read ahead at a time.
READ_AHEAD = 512
#: How long to wait between two looks at a training round.
POLL_S = 0.05


@dataclass(slots=True)
class Summary:
    """What a replay came to."""

    scored: int = 0
    duplicates: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    alerts: int = 0  # opened
    models: dict[str, str] = field(default_factory=dict)  # group -> model


class Replay:
    """One run of a recording; `tell` gets each alert event's JSON, `scores` a CSV row for each reading."""

    def __init__(
        self,
        options: EngineOptions,
        training: TrainingSettings,
        *,
        base: str,
        tell: Callable[[bytes], None],
        scores: TextIO | None = None,
        follow: Sequence[Switch] = (),
    ) -> None:
        self._follow = list(follow)
        self._options, self._training, self._base, self._tell = options, training, base, tell
        self._scores = None if scores is None else csv.writer(scores)
        self.summary = Summary()

    def run(self, recording: Recording) -> Summary:
        """Play the recording to its end."""
        self.summary = Summary(refused=recording.refused)
        if self._scores is not None:
            self._scores.writerow(["time", "device", "score", "threshold", "state", "alarm"])
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gruard-replay-")))
            database = stack.enter_context(open_database(folder, now_s=time.time()))
            pipeline = Pipeline(
                Engine(self._options),
                database,
                folder,
                # Rounds that begin early would end at another reading each time.
                replace(
                    self._training,
                    every_s=None if self._follow else self._training.every_s,
                    after_readings=None,
                    on_drift=False,
                ),
                base=self._base,
                wall=time.time,
                monotonic=time.monotonic,
                always_hold=True,
            )
            stack.callback(pipeline.rounds.trainer.stop)
            readings = iter(recording)
            while chunk := list(islice(readings, READ_AHEAD)):
                pipeline.feed(chunk)
                while pipeline.backlog:
                    self._switch(pipeline)
                    self._note(pipeline, pipeline.advance())
                    if pipeline.poll_training() is None and pipeline.holding:
                        time.sleep(POLL_S)
                pipeline.commit()
            self.summary.models = {group: note.id for group, note in pipeline.models.items()}
        return self.summary

    def _switch(self, pipeline: Pipeline) -> None:
        """Put models in charge before the reading at which they took charge in the run that is followed."""
        while self._follow:
            shown, devices = self._follow[0].shown, pipeline.engine.devices
            if not any(
                (devices[name].count if name in devices else 0) >= shown.get(name, 0)
                for name in pipeline.next_devices
            ):
                return
            pipeline.adopt(self._follow.pop(0).package, "followed")

    def _note(self, pipeline: Pipeline, events: Sequence[Event]) -> None:
        for event in events:
            match event:
                case Scored():
                    self.summary.scored += 1
                    self._write(event)
                case Refused(reason=""):
                    self.summary.duplicates += 1
                case Refused(reason=reason):
                    self.summary.refused[reason] = self.summary.refused.get(reason, 0) + 1
                case Alert():
                    self.summary.alerts += event.state == "opened"
                    note = pipeline.note_of(event.model, event.group)
                    self._tell(alert_payload(event, note, self._options.instance))
                case _:
                    pass  # EnrolDue was served by the pipeline

    def _write(self, event: Scored) -> None:
        if self._scores is not None:
            row = [rfc3339(event.reading.time_s), event.reading.device, f"{event.score:.4f}"]
            self._scores.writerow([*row, f"{event.threshold:.4f}", event.phase, int(event.alarm)])
