"""Operators' feedback: a word is checked, takes effect at once, and is durable before it is answered.

    {"do": "expected", "alert": ID}     or  {"do": "expected", "device": NAME, "time": T}; `fault` likewise
    {"do": "missed", "device": NAME, "from": T, "to": T}
    {"do": "mute", "device": NAME, "for": "2h"}
    {"do": "undo", "word": NUMBER}

T is a time as RFC 3339 or in Unix seconds. A word that only repeats what stands changes nothing and is
answered like the first one.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from gruard.daemon.config_values import parse_duration
from gruard.daemon.core import words
from gruard.daemon.core.payloads import rfc3339
from gruard.daemon.core.words import Effect, Word
from gruard.daemon.enrolment import history_of
from gruard.daemon.errors import GruardError
from gruard.models.patterns import LEAD, WARM_ROWS, pattern_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gruard.daemon.core.events import Alert
    from gruard.daemon.edges.rows import AlertRow
    from gruard.daemon.pipeline import Pipeline
    from gruard.models.patterns import Pattern

log = logging.getLogger(__name__)

#: Why a word was refused: some of `core.commands.REFUSALS`.
REASONS = ("bad_fields", "unknown_command", "unknown_alert", "unknown_device", "unknown_word", "bad_span")
#: Longest span of a fault that was missed.
LONGEST_SPAN_S = 30 * 86_400.0
#: Open alerts looked through at a start for those that a mute kept back.
MOST_OPEN = 100_000
_KEYS = {
    words.EXPECTED: {"alert", "device", "time"},
    words.FAULT: {"alert", "device", "time"},
    words.MISSED: {"device", "from", "to"},
    words.MUTE: {"device", "for"},
    words.UNDO: {"word"},
}


class FeedbackError(GruardError):
    """A word cannot be taken: whoever said it is to blame. `reason` is one of REASONS."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Feedback:
    """The desk at which words are taken, for one pipeline. Belongs to the worker thread."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._muted: dict[str, Word] = {}  # device -> the mute that stands
        self._unheard: set[str] = set()  # ids of open alerts of which a mute kept the opening back
        self.counts: dict[str, Counter[str]] = {}  # group -> verdict -> words
        self.precision: dict[str, float] = {}  # group -> share of right alerts among those judged

    def restore(self) -> None:
        """Find again what stands: mutes, and what is counted. Called once, behind the recovery."""
        said = self._pipeline.database.words()
        for word in said:
            self._count(word)
        self._look_at(said)
        for row in self._pipeline.database.alerts(MOST_OPEN, open_only=True) if self._muted else ():
            if row.device in self._muted and msgspec.json.decode(row.payload).get("muted"):
                self._unheard.add(row.id)

    def _look_at(self, said: list[Word]) -> None:
        self.precision = words.precision(said)
        mutes = (word for word in words.standing(said) if word.verdict == words.MUTE)
        now_s = self._pipeline.wall()
        self._muted = {word.device: word for word in mutes if word.to_s > now_s}

    # -- mutes ---------------------------------------------------------------------------------

    def may_tell(self, alert: Alert) -> bool:
        """Whether no mute keeps an event of an alert back.

        The end of an alert that was told before is told: whoever acts on alerts waits for it.
        """
        if alert.state == "resolved":
            unheard = alert.id in self._unheard
            self._unheard.discard(alert.id)
            return not unheard
        if self._is_muted(alert.device):
            if alert.state == "opened":
                self._unheard.add(alert.id)
            return False
        self._unheard.discard(alert.id)
        return True

    def _is_muted(self, device: str) -> bool:
        word = self._muted.get(device)
        return word is not None and self._pipeline.wall() < word.to_s

    def end_mutes(self) -> None:
        """Let mutes that are over end. Called now and then."""
        for device in [name for name in self._muted if not self._is_muted(name)]:
            del self._muted[device]
            log.info("%s is muted no more", device)

    # -- words ---------------------------------------------------------------------------------

    def take(self, said: Mapping[str, Any], key: str = "") -> dict[str, Any]:
        """Take one word; returns the answer. `key`: names this message, where its sender names messages.

        Raises:
            FeedbackError: it cannot be taken; nothing was changed.
            StateError: the disk refuses; the word is kept and becomes durable with the next commit.
        """
        verdict = said.get("do")
        if not isinstance(verdict, str) or verdict not in _KEYS:
            known = ", ".join(_KEYS)
            raise FeedbackError("unknown_command", f'There is no feedback "{verdict}"; there are {known}.')
        foreign = sorted(str(name) for name in said.keys() - _KEYS[verdict] - {"do", "id"})
        if foreign:
            raise FeedbackError("bad_fields", f'"{verdict}" takes no "{foreign[0]}".')
        self._pipeline.settle()
        self._pipeline.pending.write()  # what was scored and decided so far is to be found
        before = self._pipeline.database.words()
        known_key = [word for word in before if key and word.key == key]
        if known_key:
            return _answer(known_key[0], repeated=True)
        match verdict:
            case words.MISSED:
                word = self._missed(said, before)
            case words.MUTE:
                word = self._mute(said)
            case words.UNDO:
                word = self._undo(said, before)
            case _:
                word = self._judge(verdict, said, before)
        if any(other.id == word.id for other in before):
            return _answer(word, repeated=True)
        word = replace(word, key=key)
        self._keep(word, before)
        return _answer(word, repeated=False)

    def _keep(self, word: Word, before: list[Word]) -> None:
        pipeline = self._pipeline
        pipeline.pending.add(word)
        pipeline.engine.hear(word.id, word.device, word.change)
        self._count(word)
        self._look_at([*before, word])
        log.info("feedback %d: %s of %s", word.id, word.verdict, word.alert or word.device)
        pipeline.commit_pending()

    def _count(self, word: Word) -> None:
        self.counts.setdefault(word.group, Counter())[word.verdict] += 1

    def _word(
        self, device: str, verdict: str, from_s: float, to_s: float, change: Effect, **more: Any
    ) -> Word:
        engine = self._pipeline.engine
        group = engine.group_of(device)
        return Word(
            id=engine.heard + 1,
            device=device,
            verdict=verdict,
            from_s=from_s,
            to_s=to_s,
            given_s=self._pipeline.wall(),
            lsn=0,  # known when it is written
            effect=msgspec.json.encode(change).decode(),
            **({"group": "" if group is None else group.name, "alert": None, "key": ""} | more),
        )

    def _judge(self, verdict: str, said: Mapping[str, Any], before: list[Word]) -> Word:
        row = self._alert(said)
        stands = next((word for word in words.standing(before) if word.alert == row.id), None)
        if stands is not None and stands.verdict == verdict:
            return stands
        identity = self._pipeline.engine.heard + 1
        pattern, began_s = self._shown(row, identity)
        change = Effect(
            pattern=pattern if verdict == words.EXPECTED else None,
            drops=() if stands is None else (stands.id,),
            forgives=verdict == words.EXPECTED,
        )
        group = msgspec.json.decode(row.payload)["group"]
        end_s = row.updated_s if row.resolved_s is None else row.resolved_s
        return self._word(row.device, verdict, began_s, end_s, change, alert=row.id, group=group)

    def _shown(self, row: AlertRow, word: int) -> tuple[Pattern | None, float]:
        """What the device showed in an alert, and when that began."""
        engine, database = self._pipeline.engine, self._pipeline.database
        group = engine.group_of(row.device)
        if group is None:
            return None, row.opened_s
        end_s = math.inf if row.resolved_s is None else row.resolved_s
        limit, held = 2 * (WARM_ROWS + LEAD), 0
        while True:  # alerts are mostly of late: what lies further back is read where it must be
            stored = database.history(row.device, group.fields, limit)
            late = int((stored.time_s >= row.opened_s).sum())
            if len(stored.lsn) - late >= WARM_ROWS + LEAD or len(stored.lsn) == held:
                break
            held, limit = len(stored.lsn), 4 * limit
        return pattern_of(
            group.scorer,
            group.devices[row.device],
            history_of(stored),
            row.opened_s,
            end_s,
            word=word,
            fields=group.fields,
        )

    def _alert(self, said: Mapping[str, Any]) -> AlertRow:
        database = self._pipeline.database
        if "alert" in said:
            row = database.alert(said["alert"]) if isinstance(said["alert"], str) else None
            if row is None or not row.source:
                raise FeedbackError("unknown_alert", f'There is no alert "{said["alert"]}".')
            return row
        device, time_s = self._device(said), _time(said, "time")
        for row in database.alerts_of(device):
            end_s = math.inf if row.resolved_s is None else row.resolved_s
            if row.source and row.opened_s <= time_s <= end_s:
                return row
        raise FeedbackError("unknown_alert", f"{device} had no alert at {rfc3339(time_s)}.")

    def _device(self, said: Mapping[str, Any]) -> str:
        device = said.get("device")
        if not isinstance(device, str) or not self._pipeline.engine.knows(device):
            raise FeedbackError("unknown_device", f'There is no device "{device}".')
        return device

    def _missed(self, said: Mapping[str, Any], before: list[Word]) -> Word:
        device, from_s, to_s = self._device(said), _time(said, "from"), _time(said, "to")
        if not from_s < to_s <= from_s + LONGEST_SPAN_S:
            raise FeedbackError("bad_span", 'The time "to" must lie behind "from", by 30 days at most.')
        for word in words.standing(before):
            same = (word.verdict, word.device, word.from_s, word.to_s) == (words.MISSED, device, from_s, to_s)
            if same:
                return word
        return self._word(device, words.MISSED, from_s, to_s, Effect(lowers=1))

    def _mute(self, said: Mapping[str, Any]) -> Word:
        device, now_s = self._device(said), self._pipeline.wall()
        try:
            long_s = parse_duration(said.get("for"), 1.0)
        except ValueError as error:
            raise FeedbackError("bad_span", f'"for" {error}.') from error
        return self._word(device, words.MUTE, now_s, now_s + long_s, Effect())

    def _undo(self, said: Mapping[str, Any], before: list[Word]) -> Word:
        number = said.get("word")
        word = next((w for w in before if w.id == number and w.verdict != words.UNDO), None)
        if word is None or isinstance(number, bool):
            raise FeedbackError("unknown_word", f"There is no feedback {number} that could be undone.")
        done = next((w for w in before if w.verdict == words.UNDO and w.change.undoes == word.id), None)
        if done is not None:
            return done
        undo = self._word(
            word.device, words.UNDO, word.from_s, word.to_s, Effect(undoes=word.id), group=word.group
        )
        again = {w.id: w for w in words.standing([*before, undo])}
        back = [w for w in again.values() if w.alert == word.alert is not None]
        change = Effect(
            undoes=word.id,
            drops=(word.id,),
            lowers=-word.change.lowers,
            pattern=back[0].change.pattern if back else None,
        )
        return replace(undo, effect=msgspec.json.encode(change).decode())


def _time(said: Mapping[str, Any], name: str) -> float:
    """A time in Unix seconds. Raises FeedbackError."""
    value = said.get(name)
    try:
        if isinstance(value, str):
            found = datetime.fromisoformat(value)
            if found.tzinfo is not None:
                return found.timestamp()
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            rfc3339(value)
            return float(value)
    except (ValueError, OverflowError, OSError):
        pass
    raise FeedbackError(
        "bad_span", f'"{name}" must be a time such as "2026-05-04T10:00:00Z", or Unix seconds.'
    )


def _answer(word: Word, *, repeated: bool) -> dict[str, Any]:
    """What is told of a word that was taken."""
    return row_of(word) | {"repeated": repeated}


def row_of(word: Word) -> dict[str, Any]:
    """A word as it is listed."""
    change = word.change
    return {
        "id": word.id,
        "verdict": word.verdict,
        "device": word.device,
        "alert": word.alert,
        "from": rfc3339(word.from_s),
        "to": rfc3339(word.to_s),
        "given_at": rfc3339(word.given_s),
        "undoes": change.undoes or None,
        "pattern": change.pattern is not None,
    }
