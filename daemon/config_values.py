"""The small languages inside configuration values: durations, budgets, addresses, topics. Pure.

Each parser raises ValueError with a sentence that begins with "must" and never repeats the value.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import TYPE_CHECKING

from gruard.daemon.config_errors import choice_of
from gruard.models.calibration import Budget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

#: Longest duration: beyond it some timers of the operating system overflow.
LONGEST_S = 366 * 86_400.0

_UNIT_S = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_PERIOD_S = {"hour": 3_600.0, "day": 86_400.0, "week": 7 * 86_400.0, "month": 30 * 86_400.0}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])", re.ASCII)
_BUDGET = re.compile(
    r"(\d{1,6}(?:\.\d{1,6})?) per device per (?:(hour|day|week|month)|([1-9]\d{0,8}) readings)", re.ASCII
)
_LISTEN = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):(\d{1,5})", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# Lone surrogates too: what an environment variable holds that is not UTF-8 arrives as them.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

#: What the daemon publishes (and `cmd`, what it listens to) below the alert base; "#" stands for any levels.
OUTPUT_LEVELS = (("status",), ("info",), ("health",), ("alerts", "#"), ("state", "#"), ("cmd", "#"))


def parse_duration(value: object, least_s: float = 0.0) -> float:
    """Seconds of "90s", "15m", "6h" or "7d"; refuses less than `least_s` and more than 366 days."""
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError('must be a duration such as "90s", "15m", "6h" or "7d"')
    seconds = float(found[1]) * _UNIT_S[found[2]]
    if not least_s <= seconds <= LONGEST_S:
        raise ValueError(f'must be a duration from "{least_s:g}s" to "366d"')
    return seconds


def parse_budget(value: object) -> Budget:
    """What "NUMBER per device per hour|day|week|month" (30 days) or "... per COUNT readings" allows."""
    found = _BUDGET.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(
            'must read "NUMBER per device per hour", "... day", "... week", "... month" or'
            ' "... COUNT readings", such as "1 per device per week" or "2 per device per 10000 readings"'
        )
    number = float(found[1])
    if number == 0.0:
        raise ValueError("must allow more than 0 alarms: a budget of nothing would never alert")
    if found[2]:
        return Budget(per_second=number / _PERIOD_S[found[2]])
    return Budget(per_reading=number / int(found[3]))


def parse_listen(value: object) -> tuple[str, int]:
    """Host and port of "127.0.0.1:9109" or "[::1]:9109"; port 0 is any free one."""
    found = _LISTEN.fullmatch(value) if isinstance(value, str) else None
    if found is None or int(found[3]) > 65_535:
        raise ValueError('must be HOST:PORT such as "127.0.0.1:9109" or "[::1]:9109"')
    if found[1]:
        try:
            ipaddress.IPv6Address(found[1])
        except ValueError:
            raise ValueError("must hold a valid IPv6 address between the brackets") from None
    return found[1] or found[2], int(found[3])


def spelt(parse: Callable[[object], object], *, off: bool = False) -> Callable[[object], object]:
    """A check that keeps the text as it was written when `parse` accepts it; `off` allows "off" as well."""

    def check(value: object) -> object:
        if not (off and value == "off"):
            try:
                parse(value)
            except ValueError as fault:
                raise ValueError(f'{fault}, or "off"' if off else str(fault)) from None
        return value

    return check


def check_path(value: object) -> object:
    """A path, not empty and on one line; what is neither path nor text is left to the schema."""
    # The environment's may be a path already.
    if isinstance(value, (str, Path)) and (not str(value) or _CONTROL.search(str(value))):
        raise ValueError("must be a path")
    return value


def check_choice(value: str, known: Iterable[str]) -> str:
    """One of the known names."""
    if value not in known:
        raise ValueError(f"must be {choice_of(known, value)}")
    return value


def check_host(value: str) -> str:
    """A host name or address without scheme, port or path."""
    if "://" in value:
        raise ValueError("must be a host name or address alone, without a scheme such as mqtt://")
    if value.count(":") == 1:
        raise ValueError("must be a host name or address alone: the port is a key of its own")
    if not re.fullmatch(r"[\w.:%-]{1,253}", value):
        raise ValueError("must be a host name or address")
    return value


def check_label(value: str) -> str:
    """A short text for people: one line, 1 to 128 characters."""
    if not 1 <= len(value) <= 128 or _CONTROL.search(value):
        raise ValueError("must have 1..128 characters and no control characters")
    return value


def check_name(value: str) -> str:
    """A name that is part of topics, labels and group names."""
    if not _NAME.fullmatch(value):
        raise ValueError("must have 1..64 characters out of letters, digits, dot, hyphen and underscore")
    return value


def check_base(value: str) -> str:
    """An MQTT topic to publish below: no wildcard, no empty level, not one of the broker's own `$` topics."""
    levels = value.split("/")
    if _CONTROL.search(value) or not 1 <= len(value.encode()) <= 256:
        raise ValueError("must be a topic of 1..256 bytes without control characters")
    if any(mark in value for mark in "+#{}"):
        raise ValueError("must be one topic, without wildcards and placeholders")
    if "" in levels or value.startswith("$"):
        raise ValueError('must be a topic without empty levels and without a leading "$"')
    return value


def derive_names(topics: Sequence[str], taken: Iterable[str]) -> list[str]:
    """One unique name per topic pattern, the same on every start: "plant/{device}" -> "plant-device"."""
    used = set(taken)
    names = []
    for topic in topics:
        stem = re.sub(r"[^A-Za-z0-9_.]+", "-", topic).strip("-")[:56] or "source"
        name, number = stem, 2
        while name in used:
            name, number = f"{stem}-{number}", number + 1
        used.add(name)
        names.append(name)
    return names


def reads_own_output(topic_filter: str, base: str) -> bool:
    """Whether a subscription to this MQTT filter would receive what the daemon publishes below `base`."""
    levels = tuple(topic_filter.split("/"))
    return any(_overlap(levels, (*base.split("/"), *output)) for output in OUTPUT_LEVELS)


def _overlap(left: tuple[str, ...], right: tuple[str, ...]) -> bool:
    """Whether one topic fits both filters; "#" is zero or more levels (MQTT 3.1.1 section 4.7.1.2)."""
    if not left or not right:
        return all(level == "#" for level in left + right)
    if left[0] == "#":
        return _overlap(left[1:], right) or _overlap(left, right[1:])
    if right[0] == "#":
        return _overlap(left, right[1:]) or _overlap(left[1:], right)
    return (left[0] == right[0] or "+" in {left[0], right[0]}) and _overlap(left[1:], right[1:])
