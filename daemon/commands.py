"""Commands of people, by MQTT or as files: one queue, carried out by the worker in order of arrival.

A command counts as given once what it did is durable: the note that it was carried out stands in the same
transaction as its effect, the message is acknowledged or the file removed behind that. So after a crash it
comes again, and is known again.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from gruard.daemon.core import commands
from gruard.daemon.core.commands import (
    Activate,
    CommandError,
    Expected,
    Fault,
    Missed,
    Mute,
    Pause,
    Resume,
    Rollback,
    TrainNow,
    Undo,
)
from gruard.daemon.edges.command_files import OUTCOME, CommandFiles
from gruard.daemon.feedback import FeedbackError

if TYPE_CHECKING:
    from pathlib import Path

    from gruard.daemon.core.commands import Command, Said
    from gruard.daemon.edges.metrics import Metrics
    from gruard.daemon.edges.trainer import TrainOutcome
    from gruard.daemon.pipeline import Pipeline
    from gruard.daemon.records import Delivery, Message

log = logging.getLogger(__name__)

#: The meta key of the newest command file that was carried out, with its answer.
LAST_FILE = "last_command"


@dataclass(frozen=True, slots=True)
class _Given:
    """A command, or why it is none, with where it came from: `file` or `delivery` or neither (QoS 0)."""

    topic: str | None
    payload: bytes
    refusal: CommandError | None = None
    delivery: Delivery | None = None
    file: str | None = None


class Commands:
    """The one way in for both. Belongs to the worker thread."""

    def __init__(self, pipeline: Pipeline, directory: Path, base: str, metrics: Metrics) -> None:
        self._pipeline, self._metrics = pipeline, metrics
        self._prefix = f"{base}/cmd/"
        self._files = CommandFiles(directory)
        self._queue: deque[_Given] = deque()
        self._asked: dict[str, str] = {}  # group -> the file that asked for the round that runs

    @property
    def filter(self) -> tuple[str, int]:
        """Topic filter and QoS to subscribe with."""
        return f"{self._prefix}#", 1

    @property
    def waiting(self) -> bool:
        """Whether a command was taken and is not carried out: its message must not be acknowledged yet."""
        return bool(self._queue)

    def is_one(self, message: Message) -> bool:
        """Whether a message is a command, and so no reading, whatever the sources say."""
        return message.topic.startswith(self._prefix)

    def take(self, message: Message, delivery: Delivery | None, *, again: bool) -> None:
        """Queue a command that came by MQTT; `again`: it was taken before."""
        refusal = None
        if again:
            refusal = CommandError("duplicate", "it was delivered twice")
        elif message.retain:
            refusal = CommandError("retained", "a stored copy is not carried out: publish without retain")
        topic = message.topic.removeprefix(self._prefix)
        self._queue.append(_Given(topic, message.payload, refusal, None if again else delivery))

    def look(self) -> None:
        """Queue the commands that lie in the folder."""
        queued = {given.file for given in self._queue}
        found, refused = self._files.waiting(commands.MOST_BYTES)
        for _ in range(refused):
            log.warning("a file in the folder of commands is none; it was set aside")
            self._metrics.command("unknown", "unreadable")
        self._queue.extend(_Given(None, payload, file=name) for name, payload in found if name not in queued)

    def apply(self) -> None:
        """Carry out what is queued.

        Raises:
            StateError: the disk refuses; the command is carried out by a later call, or by the next commit.
        """
        while self._queue:
            given = self._queue[0]
            if given.file is not None and self._was_done(given.file):
                self._queue.popleft()
                continue
            before = dict(self._pipeline.models)
            name, result, answer = self._tried(given)
            if self._pipeline.models != before:
                self._metrics.model_swapped()
            self._queue.popleft()
            log.log(
                logging.INFO if result == "done" else logging.WARNING,
                "command %s: %s: %s",
                name,
                result,
                answer,
            )
            self._metrics.command(name, result)
            pending = self._pipeline.pending
            if given.delivery is not None:
                self._pipeline.took(given.delivery, ())
            if given.file is not None:
                text = msgspec.json.encode({"result": result, "answer": answer}).decode()
                pending.also(partial(self._note, given.file, text), partial(self._answer, given.file, text))
            self._pipeline.commit()

    def round_ended(self, outcome: TrainOutcome) -> None:
        """Tell who asked for it what a training round came to."""
        file = self._asked.pop(outcome.group, None)
        if file is not None:
            text = msgspec.json.encode({"result": outcome.result, "answer": outcome.reason}).decode()
            self._files.answer(file, text, OUTCOME)

    # -- one command ---------------------------------------------------------------------------

    def _tried(self, given: _Given) -> tuple[str, str, str]:
        """What the command is called, "done" or why not, and a sentence."""
        name = "unknown"
        try:
            if given.refusal is not None:
                raise given.refusal
            command = commands.decode(given.payload, given.topic)
            name = commands.tag(command)
            answer = self._carry_out(command, given.file)
        except CommandError as error:
            return name, error.reason, error.detail
        if isinstance(command, TrainNow) and given.file is not None:
            group = self._pipeline.rounds.trainer.group
            if group is not None:
                self._asked[group] = given.file
        return name, "done", answer

    def _carry_out(self, command: Command, file: str | None) -> str:
        rounds = self._pipeline.rounds
        match command:
            case Activate(model=model):
                return rounds.activate(model)
            case Rollback(group=group):
                return rounds.roll_back(group, "by command")
            case TrainNow(group=group):
                return rounds.begin_now(group)
            case Pause():
                return rounds.pause(paused=True)
            case Resume():
                return rounds.pause(paused=False)
            case Expected() | Fault() | Missed() | Mute() | Undo():
                return self._hear(command, file)

    def _hear(self, said: Said, file: str | None) -> str:
        """Take an operator's word; a sentence on it. A file that comes again after a crash is one word."""
        fields = msgspec.to_builtins(said)
        known = {name: value for name, value in fields.items() if value is not None and name != "id"}
        try:
            word = self._pipeline.feedback.take(known, said.id or file or "")
        except FeedbackError as error:
            raise CommandError(error.reason, str(error)) from None
        about = word["alert"] or word["device"]
        again = ", as was said before" if word["repeated"] else ""
        return f"feedback {word['id']}: {word['verdict']} of {about}{again}"

    # -- files ---------------------------------------------------------------------------------

    def _was_done(self, file: str) -> bool:
        """Whether a command was carried out before a crash that left its file behind."""
        noted = self._pipeline.database.meta(LAST_FILE)
        if noted is None:
            return False
        last, _, text = noted.partition(" ")
        if last != file:
            return False
        self._answer(file, text)
        return True

    def _note(self, file: str, text: str) -> None:
        self._pipeline.database.set_meta(LAST_FILE, f"{file} {text}")

    def _answer(self, file: str, text: str) -> None:
        self._files.answer(file, text)
        self._files.done(file)
