"""Sequence numbers as publishers write them."""

from __future__ import annotations

from gruard.daemon.errors import DecodeError

#: The largest number up to which every integer survives a publisher that has only doubles.
LARGEST_SEQUENCE = 2**53

#: 2**53 has 16 digits; the rest is room for leading zeros and spaces.
_MAX_CHARS = 32


def parse_sequence(published: object) -> int:
    """Turn a published sequence number into an int from 0 to `LARGEST_SEQUENCE`.

    Reads whole numbers, also written as 7.0 or 1e3, and text of ASCII digits.

    Raises `DecodeError`: `missing_sequence` for None; `bad_sequence` for everything else.
    """
    if published is None:
        raise DecodeError("missing_sequence", "the sequence number is null")
    number: float | None = None
    if isinstance(published, (int, float)) and not isinstance(published, bool):
        number = published
    elif isinstance(published, str) and len(published) <= _MAX_CHARS:
        text = published.strip()
        if text.isascii() and text.isdecimal():
            number = int(text)
    # Compared before conversion: int() of NaN or infinity raises.
    if number is None or not 0 <= number <= LARGEST_SEQUENCE or number != int(number):
        raise DecodeError(
            "bad_sequence", f"the sequence number is no whole number from 0 to {LARGEST_SEQUENCE}"
        )
    return int(number)
