"""Event times as publishers write them."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from gruard.daemon.errors import DecodeError

#: Above the first number, a time counts as many parts of a second as the second number says. Bounds and units
#: are both three decades apart, so every unit reads as 1973 to 5138 (seconds from 1970) and none overlap.
_UNITS = ((1e17, 10**9), (1e14, 10**6), (1e11, 10**3))

#: Year 5138, the end of what the units above can tell apart.
LATEST_TIME_S = 1e11

#: Nanoseconds have 19 digits and RFC 3339 with nanoseconds and zone 35 characters.
MAX_TIME_CHARS = 40

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?(?:[eE]\+?[0-9]{1,2})?")
# Date and at least the hour: a bare date would give one time to a whole day of readings.
_DATE_AND_HOUR = re.compile(r"[0-9]{4}(-?)[0-9]{2}\1[0-9]{2}[T ][0-9]{2}")


def parse_time(published: object) -> float:
    """Turn a published event time into Unix seconds UTC.

    Reads seconds, milliseconds (above 1e11), microseconds (above 1e14) and nanoseconds (above 1e17) as a
    number or as text, and dates by RFC 3339 section 5.6 and the ISO 8601 forms near it: a space for the T,
    no dashes and colons, a decimal comma. A date without a zone is taken as UTC.

    Raises `DecodeError`: `missing_time` for None; `bad_time` for what is no time from 1970 to 5138.
    """
    if published is None:
        raise DecodeError("missing_time", "the event time is null")
    if isinstance(published, (int, float)) and not isinstance(published, bool):
        return _from_number(published)
    if isinstance(published, str) and len(published) <= MAX_TIME_CHARS:
        text = published.strip()
        if _NUMBER.fullmatch(text):
            return _from_number(float(text))
        return _from_date(text.upper())
    raise DecodeError(
        "bad_time", f"the event time is neither a number nor a text of at most {MAX_TIME_CHARS} characters"
    )


def _from_number(published: float) -> float:
    # Written so that NaN fails, and compared before conversion: float() of a huge integer overflows.
    if not 0 <= published <= LATEST_TIME_S * 1e9:
        raise DecodeError("bad_time", "the event time is before 1970, not finite or too large")
    for above, per_second in _UNITS:
        if published > above:
            return published / per_second  # of two integers, so correctly rounded
    return float(published)


def _from_date(text: str) -> float:
    if not _DATE_AND_HOUR.match(text):
        raise DecodeError("bad_time", f"{text!a} is neither Unix time nor an RFC 3339 date")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise DecodeError("bad_time", f"{text!a} is not a date that exists") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    time_s = (moment - _EPOCH).total_seconds()
    if not 0 <= time_s <= LATEST_TIME_S:
        raise DecodeError("bad_time", f"{text!a} is not between 1970 and 5138")
    return time_s
