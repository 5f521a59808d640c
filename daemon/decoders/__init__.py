"""One module per payload convention, all behind one signature.

A decoder turns the bytes of one message into samples, or raises `DecodeError` with one of
`gruard.daemon.records.REJECT_REASONS`; no bytes do anything else. A message is taken whole or refused whole,
so every message counts once. Decoders know nothing of topics: `gruard.daemon.core.sources` does.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from gruard.daemon.decoders.event_time import parse_time
from gruard.daemon.decoders.json_object import JsonObject
from gruard.daemon.decoders.sample import (
    MAX_MAGNITUDE,
    NAMELESS,
    VALUE,
    Decoder,
    FieldNames,
    Sample,
    usable_name,
)
from gruard.daemon.decoders.scalar import Scalar
from gruard.daemon.decoders.sequence import parse_sequence

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gruard.daemon.records import SourceOptions

#: What `decoder = "..."` of a source may say. A factory raises `ValueError` for options that make no sense.
DECODERS: Mapping[str, Callable[[SourceOptions], Decoder]] = MappingProxyType(
    {"json": JsonObject, "scalar": Scalar}
)

__all__ = [
    "DECODERS",
    "MAX_MAGNITUDE",
    "NAMELESS",
    "VALUE",
    "Decoder",
    "FieldNames",
    "Sample",
    "parse_sequence",
    "parse_time",
    "usable_name",
]
