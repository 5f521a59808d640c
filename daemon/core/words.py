"""What operators say of alerts and devices, and what stands of it.

    expected   this alert was normal for its device     its recurrence raises none; its rows teach
    fault      this alert was right                     its rows never teach
    missed     there was a fault here, and no alert     its rows never teach; its threshold comes down
    mute       tell nothing of this device for a while
    undo       an earlier word is taken back

Words are kept in the order in which they were said. Of an alert the last word that was not taken back stands.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from gruard.models.patterns import Pattern  # noqa: TC001 -- msgspec reads the annotation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    from numpy.typing import NDArray

EXPECTED, FAULT, MISSED, MUTE, UNDO = "expected", "fault", "missed", "mute", "undo"
VERDICTS = (EXPECTED, FAULT, MISSED, MUTE)


class Effect(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a word changes in its device's state, so that recovery changes the same."""

    pattern: Pattern | None = None  # becomes normal for the device
    drops: tuple[int, ...] = ()  # words whose patterns are so no more
    forgives: bool = False  # an alarm is not charged: see `gruard.models.alarm`
    lowers: int = 0  # 1: the threshold comes down, -1: it goes back up
    undoes: int = 0  # the word that is taken back


@dataclass(frozen=True, slots=True)
class Word:
    """One word, as it is stored."""

    id: int  # rises
    key: str  # what makes a repetition of it known
    device: str
    group: str
    verdict: str
    alert: str | None
    from_s: float  # event time of the readings it is about; of `mute` when it begins, by the clock
    to_s: float
    given_s: float
    lsn: int  # the newest reading journalled before it
    effect: str  # JSON of an Effect

    @property
    def change(self) -> Effect:
        """The effect, read."""
        return msgspec.json.decode(self.effect, type=Effect)


def standing(words: Iterable[Word]) -> list[Word]:
    """The words that stand, oldest first: not taken back, of each alert and each device's mute the last."""
    said = list(words)
    undone = {word.change.undoes for word in said if word.verdict == UNDO}
    last: dict[tuple[str, str], Word] = {}
    for word in said:
        if word.verdict != UNDO and word.id not in undone:
            last[_about(word)] = word
    return sorted(last.values(), key=lambda word: word.id)


def _about(word: Word) -> tuple[str, str]:
    if word.alert is not None:
        return "alert", word.alert
    return (MUTE, word.device) if word.verdict == MUTE else (word.verdict, str(word.id))


def precision(words: Iterable[Word]) -> dict[str, float]:
    """Of each group the share of right alerts among those with a verdict; absent where there is none."""
    counts = {FAULT: Counter[str](), EXPECTED: Counter[str]()}
    for word in standing(words):
        if word.verdict in counts:
            counts[word.verdict][word.group] += 1
    groups = {*counts[FAULT], *counts[EXPECTED]}
    return {name: counts[FAULT][name] / (counts[FAULT][name] + counts[EXPECTED][name]) for name in groups}


@dataclass(frozen=True, slots=True)
class Span:
    """Readings of a device that an operator judged, by event time, both ends included."""

    from_s: float
    to_s: float
    teaches: bool


def spans(words: Iterable[Word], ends: Mapping[str, float]) -> dict[str, list[Span]]:
    """By device what is judged. `ends`: until when each alert went on (infinite: it is open)."""
    found: dict[str, list[Span]] = {}
    for word in standing(words):
        if word.verdict != MUTE:
            end_s = ends.get(word.alert or "", word.to_s)
            span = Span(word.from_s, max(end_s, word.from_s), word.verdict == EXPECTED)
            found.setdefault(word.device, []).append(span)
    return found


def taught(
    time_s: NDArray[np.float64],
    normal: NDArray[np.bool_],
    judged: Iterable[Span],
    *,
    faults_only: bool = False,
) -> NDArray[np.bool_]:
    """Which readings teach, (T,), where operators overrule `normal` (T,). The later word counts."""
    found = normal.copy()
    for span in judged:
        if not (faults_only and span.teaches):
            found[(time_s >= span.from_s) & (time_s <= span.to_s)] = span.teaches
    return found
