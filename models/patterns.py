"""What an operator called normal for a device: patterns of evidence whose recurrence raises no alarm.

A reading that is unusual points somewhere: which fields are off and which way, and at which horizons and time
scales that shows.

    direction   [ mean of the last 8 z | sqrt of what each field contributed lately | u of every stream ]
    like        cosine with a direction of a pattern >= LIKE, no longer than LARGER times that direction, and
                its level not the other way
    effect      u enters the alarm as at most QUIET times what would open one; the score itself stays true

An unusual stretch passes through several directions as it comes, lasts and goes; a pattern keeps the few that
cover most of its readings. Fields are kept in physical units, so that a pattern outlives the weights and the
scaling it was seen with. The streams are u, which every calibration brings to one scale; where a model has
other streams than the one that saw the pattern, the fields alone decide.

Shapes: B devices, T rows, F fields, E lines of evidence, K scales, P directions, W = 2F + E K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gruard.models.linear import LAGS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gruard.models.group import GroupScorer
    from gruard.models.history import History
    from gruard.models.reasons import Seen

    Floats = NDArray[np.float32]

#: Cosine from which on two readings point the same way, and how much larger than known is "clearly larger".
LIKE, LARGER = 0.9, 1.25
#: Where both levels are this far from the learned normal, in sigma, a cosine between them below this is the
#: other way. Nearer to it the level tells what the machine was at, not what was wrong.
FAR, OPPOSITE = np.float32(3.0), -0.3
#: Share of the threshold that the evidence of a known pattern counts as; below `alarm.OFF`, so alarms end.
QUIET = 0.5
#: Directions of one pattern, and patterns of one device: the oldest gives way.
MOST_DIRECTIONS, MOST_PATTERNS = 4, 8
#: Rows before an alarm that may belong to it, where u is above this share of the level: evidence grows first.
LEAD, LEADING = 30, 0.75
#: Rows that bring a device's memory back before its evidence is looked at, and rows looked at, at most.
WARM_ROWS, MOST_ROWS = 200, 1500


@dataclass(frozen=True, slots=True)
class Pattern:
    """One stretch of readings that is normal for its device."""

    word: int  # number of the operator's word that it came with
    fields: tuple[str, ...]
    rows: bytes  # (P, W) float32: what a reading shows, fields in physical units, as long as the largest

    def directions(self) -> Floats:
        """The rows as an array (P, W); W is as the model that saw them had it."""
        flat = np.frombuffer(self.rows, np.float32)
        return flat.reshape(MOST_DIRECTIONS, -1) if len(flat) else np.zeros((0, 0), np.float32)


def shown(z: Floats, parts: Floats, streams: Floats) -> Floats:
    """What readings show (B, W), in sigma.

    z (B, F): the mean of the newest readings; parts (B, E, F): what each field contributed to each line
    lately; streams (B, E, K): u.
    """
    own = np.sqrt(parts.mean(axis=1))  # (B, F)
    every = streams.reshape(len(streams), -1)
    # The streams weigh about as much as the fields, whatever there are of each.
    weight = own.mean(axis=1) / (every.mean(axis=1) + np.float32(1e-6))
    return np.concatenate([z, own, every * weight[:, None]], axis=1)


class Patterns:
    """The patterns of a group's devices, by slot. A device without any costs nothing."""

    def __init__(self) -> None:
        self._of: dict[int, list[Floats]] = {}

    def keep(self, slot: int, patterns: Sequence[Pattern]) -> None:
        """Let these be the patterns of a slot; none: forget it."""
        self._of.pop(slot, None)
        if patterns:
            self._of[slot] = [pattern.directions() for pattern in patterns]

    def __bool__(self) -> bool:
        """Whether any device has one."""
        return bool(self._of)

    def like(
        self,
        slots: NDArray[np.int64],
        unusual: NDArray[np.bool_],
        lags: Floats,
        parts: Floats,
        streams: Floats,
        scale: NDArray[np.float64],
    ) -> NDArray[np.bool_]:
        """Which of B readings show a pattern of their device (B,); only `unusual` ones (B,) are asked.

        lags (B, LAGS, F): the newest readings in sigma; parts and streams as in `shown`; scale (B, F). The
        answer for one device does not depend on others.
        """
        found = np.zeros(len(slots), bool)
        asked = [n for n in np.flatnonzero(unusual).tolist() if int(slots[n]) in self._of]
        if not asked:
            return found
        here = shown(lags[asked].mean(axis=1), parts[asked], streams[asked])  # (A, W)
        fields = lags.shape[2]
        owners: list[int] = []
        known: list[Floats] = []
        for place, n in enumerate(asked):
            for directions in self._of[int(slots[n])]:
                owners += [place] * len(directions)
                known.append(_brought(directions, scale[n], fields, here.shape[1]))
        rows, owner = np.concatenate(known), np.array(owners)
        mine = here[owner]  # (R, W), beside `rows`
        # Where the model that saw the pattern had other streams, its row says nothing of these.
        mine = np.where(np.isnan(rows), np.float32(0.0), mine)
        rows = np.where(np.isnan(rows), np.float32(0.0), rows)
        (long, longest, along), (far, furthest, level) = (
            _compared(mine, rows),
            _compared(mine[:, :fields], rows[:, :fields]),
        )
        alike = along >= np.float32(LIKE) * long * longest
        alike &= (np.minimum(far, furthest) < FAR) | (level >= np.float32(OPPOSITE) * far * furthest)
        known_one = alike & (longest > 0.0) & (long <= np.float32(LARGER) * longest)
        found[np.array(asked)[owner[known_one]]] = True
        return found


def _compared(a: Floats, b: Floats) -> tuple[Floats, Floats, Floats]:
    """Lengths of a and b, both (R, W), and their product: (R,) each."""
    return np.sqrt((a * a).sum(axis=1)), np.sqrt((b * b).sum(axis=1)), (a * b).sum(axis=1)


def _brought(directions: Floats, scale: NDArray[np.float64], fields: int, width: int) -> Floats:
    """A pattern's rows in a device's present sigma, (P, W); NaN for streams that are of another model."""
    rows = np.full((len(directions), width), np.nan, np.float32)
    rows[:, : 2 * fields] = directions[:, : 2 * fields] / np.tile(scale, 2)
    if directions.shape[1] == width:
        rows[:, 2 * fields :] = directions[:, 2 * fields :]
    return rows


def pattern_of(
    scorer: GroupScorer,
    slot: int,
    history: History,
    first_s: float,
    last_s: float,
    *,
    word: int,
    fields: tuple[str, ...],
) -> tuple[Pattern | None, float]:
    """What a device showed in an alarm from `first_s` to `last_s`, event time, and when that began.

    `history` holds those rows with some before them; it is scored again by the model that is in charge now.
    Without a pattern where nothing in it is unusual to that model, or no row of it is left.
    """
    begin = int(np.searchsorted(history.time_s, first_s))
    end = int(np.searchsorted(history.time_s, last_s, "right"))
    end = min(end, begin + MOST_ROWS)
    start = max(begin - LEAD - WARM_ROWS, 0)
    if begin >= end:
        return None, first_s
    again = scorer.score_again(slot, history, start, end)
    if len(again) < end - start:  # the device is not scored yet
        return None, first_s
    (u, rows), level = _scored_again(again), scorer.level(slot)
    first = begin - start
    while first > max(begin - start - LEAD, 0) and u[first - 1] > LEADING * level:
        first -= 1
    loud = np.flatnonzero(u > QUIET * level)
    loud = loud[loud >= first]
    began_s = float(history.time_s[start + first])
    if not len(loud):
        return None, began_s
    directions = _covering(rows[loud])
    directions[:, : 2 * len(fields)] *= np.tile(again[-1].scale[0], 2)
    return Pattern(word, fields, directions.astype(np.float32).tobytes()), began_s


def _scored_again(again: Sequence[Seen]) -> tuple[Floats, Floats]:
    """u (T,) and what is shown (T, W) in T rows of one device, scored in their order."""
    z = np.concatenate([seen.z for seen in again])  # (T, F)
    before = np.concatenate([np.repeat(z[:1], LAGS - 1, axis=0), z])
    means = np.lib.stride_tricks.sliding_window_view(before, LAGS, axis=0).mean(axis=2, dtype=np.float32)
    parts, streams = (
        np.concatenate([getattr(seen, name) for seen in again]) for name in ("parts", "streams")
    )
    return np.concatenate([seen.u for seen in again]), shown(means, parts, streams)


def _covering(rows: Floats) -> NDArray[np.float64]:
    """The directions (P, W) that cover most of the rows (T, W), each as long as the longest row it covers."""
    size = np.sqrt(np.square(rows).sum(axis=1)) + np.float32(1e-9)
    unit = rows / size[:, None]
    left = np.ones(len(rows), bool)
    found = np.zeros((MOST_DIRECTIONS, rows.shape[1]))
    for place in range(MOST_DIRECTIONS):
        if not left.any():
            break
        covers = (unit @ unit[left].T >= LIKE).sum(axis=1)  # (T,) by each row, of those left
        mine = left & (unit @ unit[covers.argmax()] >= LIKE)
        middle = unit[mine].mean(axis=0)
        found[place] = middle / np.linalg.norm(middle) * size[mine].max()
        left &= ~mine
    return found
