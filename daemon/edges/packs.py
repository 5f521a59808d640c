"""Records, the unit of storage, and the move of a device's records from the journal into packs.

A record is one reading as bytes, little endian: lsn, time_s, received_s, score, flags, the values, and a
CRC-32 of all that, seeded with the names of device, source and fields. So a record whose bytes or whose
owner's name were damaged is known for what it is. A pack is records of one device and one set of fields,
oldest first, end to end.

Moving readings in runs is what keeps the writing small: a run costs a page or two, where an index by device
would cost a page per reading. What is journalled and not yet packed is the tail.
"""

from __future__ import annotations

import json
import struct
from array import array
from bisect import bisect_left
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple
from zlib import crc32

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: Packing starts once the tail holds this many records. More means longer packs and less writing, but a
#: start has to read the tail (0.1 s), and it is held in memory at 8 bytes a record.
TAIL_RECORDS: Final = 131_072
#: The longest pack; what one look at a device's history reads in vain is at most this.
PACK_RECORDS: Final = 256

_HEAD: Final = struct.Struct("<qdddq")  # lsn, time_s, received_s, score, flags
_DEVICE_SHIFT: Final = 32  # of a pack's id


class Fieldset(NamedTuple):
    """One source's set of fields, as stored."""

    source: str
    fields: tuple[str, ...]
    checksum: int  # of both names

    def seed(self, device: str) -> int:
        """Where the checksum of a record of `device` starts."""
        return crc32(device.encode("utf-8", "surrogatepass"), self.checksum)


def fieldset_text(fields: Sequence[str]) -> str:
    """How a set of fields is written in its table."""
    return json.dumps(fields, separators=(",", ":"))


def read_fieldset(source: str, text: str) -> Fieldset | None:
    """The set of fields, or None if the text is damaged."""
    try:
        fields = json.loads(text)
    except ValueError:
        return None
    if not isinstance(fields, list) or not all(isinstance(field, str) for field in fields):
        return None
    return Fieldset(source, tuple(fields), crc32(f"{source}\0{text}".encode("utf-8", "surrogatepass")))


@lru_cache(maxsize=256)
def record_layout(fields: int) -> np.dtype[np.void]:
    """The dtype of one record of so many fields."""
    return np.dtype([
        ("lsn", "<i8"), ("time_s", "<f8"), ("received_s", "<f8"), ("score", "<f8"), ("flags", "<i8"),
        ("values", "<f8", (fields,)), ("checksum", "<u4"),
    ])  # fmt: skip


def write_record(
    lsn: int, time_s: float, received_s: float, score: float, flags: int, values: np.ndarray, seed: int
) -> bytes:
    """One reading as a record. `values` is (F,) float64."""
    record = _HEAD.pack(lsn, time_s, received_s, score, flags) + values.astype("<f8", copy=False).tobytes()
    return record + crc32(record, seed).to_bytes(4, "little")


def join_records(records: Iterable[object], fields: int) -> bytes:
    """Records end to end; one whose length is wrong becomes zeros, which no checksum fits."""
    size = record_layout(fields).itemsize
    return b"".join(
        record if isinstance(record, bytes) and len(record) == size else bytes(size) for record in records
    )


def sound_records(body: object, fields: int, seed: int) -> tuple[np.ndarray, int]:
    """The records in `body` whose checksum holds, (T,) of `record_layout`, and how many others there are."""
    layout = record_layout(fields)
    size = layout.itemsize
    if not isinstance(body, bytes):
        return np.empty(0, layout), 1
    count, rest = divmod(len(body), size)
    records = np.frombuffer(body, layout, count)
    view = memoryview(body)
    checksums = np.fromiter(
        (crc32(view[at : at + size - 4], seed) for at in range(0, count * size, size)), np.uint32, count
    )
    sound = checksums == records["checksum"]
    damaged = count - int(np.count_nonzero(sound)) + bool(rest)
    return (records[sound] if damaged else records), damaged


def read_record(
    record: object, fields: int, seed: int
) -> tuple[int, float, float, float, int, np.ndarray] | None:
    """What `write_record` was given, with `values` (F,) float64 of its own; None if damaged."""
    if not isinstance(record, bytes) or len(record) != record_layout(fields).itemsize:
        return None
    if crc32(record[:-4], seed) != int.from_bytes(record[-4:], "little"):
        return None
    values = np.frombuffer(record, "<f8", fields, _HEAD.size).copy()
    return *_HEAD.unpack_from(record), values


def checkpoint_checksum(
    generation: int,
    device: str,
    fieldset: Fieldset,
    lsn: int,
    layout: str,
    model: str | None,
    state: object,
) -> int:
    """What the checksum of a sound checkpoint is; -1, which fits nothing, if `state` is not even bytes."""
    if not isinstance(state, bytes):
        return -1
    # Version 1 had one generation and did not name it.
    named = (lsn, layout, model, generation) if generation else (lsn, layout, model)
    return crc32(state, crc32(repr(named).encode(), fieldset.seed(device)))


class Tail:
    """The LSNs that are journalled and not yet packed, per device id, rising."""

    def __init__(self) -> None:
        self.lsns: dict[int, array[int]] = {}
        self.count = 0
        self.newest = 0

    def add(self, device: int, lsn: int) -> None:
        """Note one more reading of `device`, newer than all before."""
        held = self.lsns.get(device)
        if held is None:
            held = self.lsns[device] = array("q")
        held.append(lsn)
        self.count += 1
        self.newest = max(self.newest, lsn)

    def between(self, device: int, low: int, high: int) -> array[int]:
        """The LSNs of `device` with low <= lsn < high."""
        held = self.lsns.get(device, array("q"))
        return held[bisect_left(held, low) : bisect_left(held, high)]

    def drop(self, device: int, high: int) -> int:
        """Forget the LSNs of `device` below `high`; how many that were."""
        held = self.lsns.get(device, array("q"))
        count = bisect_left(held, high)
        del held[:count]
        self.count -= count
        if not held:
            self.lsns.pop(device, None)
        return count

    def oldest(self, default: int) -> int:
        """The lowest LSN held, or `default` if none is."""
        return min((held[0] for held in self.lsns.values()), default=default)


def pack_range(device: int) -> tuple[int, int]:
    """The lowest and the highest pack id of a device."""
    return device << _DEVICE_SHIFT, (device + 1 << _DEVICE_SHIFT) - 1


def pack_owner(pack: int) -> int:
    """The device of a pack, by their ids."""
    return pack >> _DEVICE_SHIFT


def lsn_list(lsns: array[int]) -> str:
    """LSNs as one SQL parameter, for json_each."""
    return json.dumps(lsns.tolist())
