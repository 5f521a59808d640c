"""Checksums of rows: a row that is not what was written is known for it, and costs only itself.

SQLite keeps none. The rows of SEALED tables carry one over all their columns, `readings`, `packs` and
checkpoints over their bytes and their owner's names (packs.py), `deliveries` one over each group's.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from zlib import crc32

from gruard.daemon.records import Delivery

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Table -> its columns under `checksum`, the one that names a row first.
SEALED: Final[Mapping[str, tuple[str, ...]]] = {
    "meta": ("key", "value"),
    "generations": ("id", "lsn", "states"),
    "fieldsets": ("id", "source", "fields"),
    "devices": (
        "id", "device", "fieldset", "first_s", "last_s", "readings", "packed_rows", "packed_lsn", "next_pack",
    ),
    "models": (
        "id", "group_name", "status", "created_s", "parent", "skill", "manifest", "reason", "activated_lsn",
        "activated_s",
    ),
    "alerts": (
        "id", "device", "source", "state", "severity", "opened_s", "updated_s", "resolved_s", "score",
        "threshold", "payload",
    ),
    "outbox": ("seq", "topic", "payload", "qos", "retain", "key"),
    "feedback": (
        "id", "key", "device", "group_name", "verdict", "alert", "from_s", "to_s", "given_s", "lsn",
        "effect",
    ),
}  # fmt: skip

_DELIVERY: Final = struct.Struct("<HqH8s")  # packet id, ordinal, how many are missing, digest
_MISSING: Final = struct.Struct("<I")  # each of them, behind
#: Packet ids are 1 to 65,535 [MQTT 5, 2.2.1].
MOST_PACKET_ID: Final = 65_535


def row_checksum(*values: object) -> int:
    """The checksum of one row: its table's name and its columns, each a number, text, bytes or None."""
    return crc32(b"".join(map(_encoded, values)))


def _encoded(value: object) -> bytes:
    """A value as bytes, so that no two rows read the same."""
    match value:
        case None:
            return b"n"
        case int():
            return b"i%d;" % value
        case float():  # a column of floats gives an integer back as one
            return b"i%d;" % value if value.is_integer() else b"f" + struct.pack("<d", value)
        case str():
            kind, content = b"s", value.encode("utf-8", "surrogatepass")
        case bytes():
            kind, content = b"b", value
        case _:
            raise TypeError(f"no column holds {type(value)}")
    return b"%b%d;%b" % (kind, len(content), content)


@lru_cache
def keeping(table: str) -> str:
    """The statement that writes a row of a sealed table, or writes it anew."""
    key, *rest = SEALED[table]
    columns = ", ".join((key, *rest, "checksum"))
    marks = ", ".join("?" * (len(rest) + 2))
    anew = ", ".join(f"{name} = excluded.{name}" for name in (*rest, "checksum"))
    return f"INSERT INTO {table} ({columns}) VALUES ({marks}) ON CONFLICT ({key}) DO UPDATE SET {anew}"  # noqa: S608


@lru_cache
def reading(table: str) -> str:
    """The beginning of a query for whole rows of a sealed table, checksum last."""
    return f"SELECT {', '.join(SEALED[table])}, checksum FROM {table} "  # noqa: S608 - names from above


def is_sound(table: str, row: Sequence[object]) -> bool:
    """Whether a row that `reading` gave is what was written."""
    return row[-1] == row_checksum(table, *row[:-1])


def write_deliveries(rows: Sequence[Delivery]) -> bytes:
    """The deliveries of one group end to end, and a CRC-32. Raises struct.error for an impossible id."""
    pack = _DELIVERY.pack
    parts = [pack(row.packet_id, row.ordinal, len(row.missing), row.digest) for row in rows]
    for place, row in enumerate(rows):
        if row.missing:
            parts[place] += b"".join(map(_MISSING.pack, row.missing))
    body = b"".join(parts)
    return body + crc32(body).to_bytes(4, "little")


def read_deliveries(body: object) -> list[Delivery]:
    """What `write_deliveries` was given; nothing if damaged."""
    if not isinstance(body, bytes) or crc32(body[:-4]) != int.from_bytes(body[-4:], "little"):
        return []
    rows, at, end = [], 0, len(body) - 4
    while at < end:
        packet_id, ordinal, missing, digest = _DELIVERY.unpack_from(body, at)
        at += _DELIVERY.size
        behind = at + missing * _MISSING.size
        rows.append(
            Delivery(packet_id, ordinal, digest, tuple(n for (n,) in _MISSING.iter_unpack(body[at:behind])))
        )
        at = behind
    return rows
