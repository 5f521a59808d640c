"""What was really sent: a fleet whose every reading follows from a seed, and what became of each.

Devices of four kinds publish: `ts` with an event time, `seq` with a rising number, `dumb` with neither, and
`many`, dumb too, with several readings in each message. The broker's word decides: a reading that it has
acknowledged must be counted once. One that was put on the wire again after a broken connection may have
reached the broker twice; time or number tell the daemon so, and of a dumb sensor nobody can, so there the
record allows as many copies as were sent.

Each place in the plant gets a new device after `life` readings, in turns: the daemon hushes a device that
alarms again and again, and only fresh ones keep alerts and enrolments coming for as long as a run lasts.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

Mode = Literal["ts", "seq", "dumb", "many"]
MODES: Final[tuple[Mode, ...]] = ("ts", "seq", "dumb", "many")
#: Those whose repetitions nobody can tell, unless the broker marks them.
DUMB: Final = ("dumb", "many")
FIELDS: Final = ("f0", "f1", "f2")
START_S: Final = 1_600_000_000.0
#: First level of the topic by mode: each is a source of its own in the daemon's configuration.
LEVELS: Final[Mapping[Mode, str]] = {"ts": "plant", "seq": "counted", "dumb": "raw", "many": "raw"}
LIFE: Final = 1200
#: Readings in a message of a `many` device; a life holds whole messages.
SEVERAL: Final = 6
#: No device is ever replaced.
FOR_EVER: Final = 2**40

#: Rows made at a time; each block has one fault.
_BLOCK: Final = 300
_FAULT_FIRST, _FAULT_LAST, _FAULT_ROWS = 70, 200, 60
_PERIOD: Final = 40


@dataclass(frozen=True, slots=True)
class Fleet:
    """Devices with known readings: the same seed gives the same bytes."""

    places: int
    seed: int
    modes: tuple[Mode, ...] = ("ts",)
    life: int = LIFE

    def device(self, place: int, before: int) -> tuple[str, int]:
        """The device at a place after `before` readings there, and which reading of its own comes next."""
        # As if the first device had begun earlier.
        gone = place * self.life // self.places // SEVERAL * SEVERAL
        generation, n = divmod(gone + before, self.life)
        return f"{self.modes[place % len(self.modes)]}-{place:03d}.{generation}", n if generation else before

    def rows(self, device: str, count: int) -> np.ndarray:
        """The first `count` readings of a device (count, F), physical units."""
        blocks = [_block(self.seed, device, at) for at in range(-(-count // _BLOCK))]
        return np.concatenate([*blocks, np.zeros((0, len(FIELDS)))])[:count]

    def payload(self, device: str, n: int) -> bytes:
        """The message of a device that begins with reading n."""
        readings = [self._reading(device, k) for k in range(n, n + size_of(device))]
        return json.dumps(readings if mode_of(device) == "many" else readings[0]).encode()

    def _reading(self, device: str, n: int) -> dict[str, float]:
        row = _block(self.seed, device, n // _BLOCK)[n % _BLOCK]
        body: dict[str, float] = dict(zip(FIELDS, row.tolist(), strict=True))
        mode = mode_of(device)
        if mode == "ts":
            body["ts"] = START_S + n
        elif mode == "seq":
            body["seq"] = n
        return body


def mode_of(device: str) -> Mode:
    """What the payloads of a device carry."""
    return next(mode for mode in MODES if device.startswith(mode))


def size_of(device: str) -> int:
    """Readings in each message of a device."""
    return SEVERAL if mode_of(device) == "many" else 1


def topic_of(device: str) -> str:
    """Where a device publishes."""
    return f"{LEVELS[mode_of(device)]}/{device}"


@lru_cache(maxsize=4096)
def _block(seed: int, device: str, at: int) -> np.ndarray:
    """Rows (_BLOCK, F): coupled oscillations, noise that makes every row unique, and one fault."""
    place, generation = map(int, device.split("-")[1].split("."))
    rng = np.random.default_rng([seed, place, generation, at])
    t = np.arange(at * _BLOCK, (at + 1) * _BLOCK)
    phase = 2 * np.pi * (t + 7 * place) / _PERIOD
    shapes = np.stack([np.sin(phase - k) for k in range(len(FIELDS))], axis=1)
    rows = 20.0 + 3.0 * shapes + 0.15 * rng.standard_normal(shapes.shape)
    first = int(rng.integers(_FAULT_FIRST, _FAULT_LAST))
    fault = slice(first, first + _FAULT_ROWS)
    field, kind = int(rng.integers(len(FIELDS))), int(rng.integers(3))
    if kind == 0:
        rows[fault, field] += 25.0
    elif kind == 1:
        rows[fault, field] += 10.0 * rng.standard_normal(_FAULT_ROWS)
    else:
        rows[fault, field] = 35.0 + 6.0 * np.sin(5 * phase[fault]) + 0.1 * rows[fault, field]
    rows.setflags(write=False)
    return rows


class Truth:
    """How often each reading was put on the wire, and which the broker acknowledged. Safe between threads."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._lock = threading.Lock()
        self._copies: dict[str, list[int]] = {}
        self._acked: dict[str, list[bool]] = {}
        self._total = 0

    def sent(self, device: str, n: int) -> None:
        """Note that the message that begins with reading n goes on the wire, for the first time or again."""
        with self._lock:
            copies = self._copies.setdefault(device, [])
            acked = self._acked.setdefault(device, [])
            for k in range(n, n + size_of(device)):
                if k == len(copies):
                    copies.append(0)
                    acked.append(False)
                copies[k] += 1

    def acknowledged(self, device: str, n: int) -> None:
        """Note that the broker took the message that begins with reading n."""
        with self._lock:
            for k in range(n, n + size_of(device)):
                self._total += not self._acked[device][k]
                self._acked[device][k] = True

    @property
    def names(self) -> list[str]:
        """Devices that have sent something, in the order of their names."""
        with self._lock:
            return sorted(self._copies)

    def copies(self, device: str) -> list[int]:
        """How often each reading of a device was sent, in order."""
        with self._lock:
            return list(self._copies[device])

    def acked(self, device: str) -> list[bool]:
        """Whether the broker took each reading of a device, in order."""
        with self._lock:
            return list(self._acked[device])

    @property
    def total(self) -> int:
        """Readings of which at least one copy was acknowledged."""
        return self._total
