"""One plain number as text: `76.2`, ` 21.5 `, `21,5`, `21.5 °C`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gruard.daemon.decoders.sample import MAX_MAGNITUDE, VALUE, FieldNames, Sample
from gruard.daemon.errors import DecodeError

if TYPE_CHECKING:
    from gruard.daemon.records import SourceOptions

#: A double needs 24 characters, a unit and padding the rest.
MAX_SCALAR_CHARS = 64

# A unit follows a space, except that percent and degree signs may touch the number: letters that touch it
# could as well belong to it (0x1F, 1e5).
_SCALAR = re.compile(
    r"(?P<number>[+-]?(?:[0-9]+(?:[.,][0-9]*)?|[.,][0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"(?:(?:\s+(?=[^\W\d_]|[%°])|(?=[%°℃℉]))[\w%°/·^*-]{1,8})?"
)

# 1,234 is 1.234 to one publisher and 1234 to another. A leading 0 or a fourth digit before the comma, or any
# count but three after it, rules the second out.
_AMBIGUOUS = re.compile(r"[+-]?[1-9][0-9]{0,2},[0-9]{3}")


class Scalar:
    """The decoder `scalar`: `Scalar(options)(payload)` is one sample with one field.

    The field is `VALUE` until a `{field}` level of the topic names it. A decimal comma is read where it
    cannot be a thousands separator; a unit of up to 8 characters is dropped. Words (ON, true, nan, unknown)
    are no numbers.

    Raises `ValueError` for options with an event time or a sequence number, which a plain number cannot
    carry; `DecodeError`: `empty`, `not_text`, `not_number`, `out_of_range`, `no_numeric_field` (the options
    exclude the field).
    """

    def __init__(self, options: SourceOptions) -> None:
        if options.time is not None:
            raise ValueError("A plain number carries no event time, so `time` must go.")
        if options.sequence is not None:
            raise ValueError("A plain number carries no sequence number, so `sequence` must go.")
        names = FieldNames(include=options.include, exclude=options.exclude, rename=options.rename)
        self._field = names[VALUE]

    def __call__(self, payload: bytes) -> list[Sample]:
        """Decode one message."""
        value = _number(payload)
        if self._field is None:
            raise DecodeError("no_numeric_field", "include and exclude leave no field")
        return [Sample({self._field: value}, None, {})]


def _number(payload: bytes) -> float:
    if len(payload) > MAX_SCALAR_CHARS:
        raise DecodeError("not_number", f"longer than {MAX_SCALAR_CHARS} bytes")
    try:
        text = payload.decode().strip()
    except UnicodeDecodeError:
        raise DecodeError("not_text", "not UTF-8") from None
    if not text:
        raise DecodeError("empty", "nothing but white space")
    found = _SCALAR.fullmatch(text)
    if found is None:
        raise DecodeError("not_number", f"{text!a} is no number")
    number = found["number"]
    if _AMBIGUOUS.fullmatch(number):
        raise DecodeError("not_number", f"{number!a} may have a decimal comma or a thousands separator")
    value = float(number.replace(",", "."))
    if not -MAX_MAGNITUDE <= value <= MAX_MAGNITUDE:
        raise DecodeError("out_of_range", f"{number!a} is beyond {MAX_MAGNITUDE:g}")
    return value
