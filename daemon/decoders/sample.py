"""What every decoder returns, and how payload names become field names."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import translate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Numbers beyond this are refused. Up to here a square still fits float32 (3.4e38), so that sums of squares
#: downstream stay finite, and every integer is exact in float64 (2**53 is 9.0e15).
MAX_MAGNITUDE = 1e15

#: Longest field name in characters. Names become JSON keys, metric text and database rows.
MAX_NAME_CHARS = 128

#: Payload names remembered by one source before its memory is cleared: bounds what a sender of
#: ever-changing names can occupy (about 1 MB).
MAX_REMEMBERED_NAMES = 4096

#: Name of the only number of a payload that names nothing itself.
VALUE = "value"

#: Stands in `Sample.issues` for fields whose payload name cannot be used; no real field can be called so.
NAMELESS = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one payload says about one moment of its device.

    `values` are finite and at most `MAX_MAGNITUDE` in size. A name is never in both `values` and `issues`.
    """

    values: dict[str, float]  # field -> physical units as published
    time_s: float | None  # event time, Unix seconds UTC; None: the payload carries none
    issues: dict[str, str]  # field -> one of records.ISSUE_REASONS; left out of values
    sequence: int | None = None  # rises with each reading of the device; None: the payload carries none


Decoder = Callable[[bytes], list[Sample]]


def usable_name(name: str) -> bool:
    """True when `name` is 1 to 128 printable characters: it can be stored, published and shown as it is."""
    # str.isprintable() is False for control and format characters, line breaks and lone surrogates,
    # so a name that passes can always be encoded as UTF-8.
    return 0 < len(name) <= MAX_NAME_CHARS and name.isprintable()


class FieldNames(dict[str, str | None]):
    """Payload name -> field name by include, exclude and rename; remembers what it worked out.

    `names[payload_name]` is the field name, None for a field that is not wanted, or `NAMELESS` for a name
    that cannot be used. A pattern that fits an object or array covers everything in it. Patterns are
    fnmatch patterns, case-sensitive; `*` spans dots; exclude wins over include; rename comes last.
    """

    def __init__(
        self,
        *,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
        rename: Mapping[str, str] | None = None,
    ) -> None:
        """Raise `ValueError` when a new name in `rename` cannot be a field name."""
        super().__init__()
        self._include = _any_of(include)
        self._exclude = _any_of(exclude)
        self._rename = dict(rename or {})
        for payload_name, field in self._rename.items():
            if not usable_name(field):
                raise ValueError(
                    f"{payload_name!a} cannot be renamed to that: "
                    f"a field name is 1 to {MAX_NAME_CHARS} printable characters."
                )

    def __missing__(self, payload_name: str) -> str | None:
        if not usable_name(payload_name):
            return NAMELESS
        if len(self) >= MAX_REMEMBERED_NAMES:
            self.clear()
        wanted = (self._include is None or self._include.match(payload_name)) and not (
            self._exclude is not None and self._exclude.match(payload_name)
        )
        field = self[payload_name] = self._rename.get(payload_name, payload_name) if wanted else None
        return field


def _any_of(patterns: Iterable[str]) -> re.Pattern[str] | None:
    translated = [translate(form) for pattern in patterns for form in (pattern, f"{pattern}.*")]
    return re.compile("|".join(translated)) if translated else None
