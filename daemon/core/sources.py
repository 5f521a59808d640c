"""Which messages are readings, of which device: topic patterns and the way from a message to readings.

A pattern is an MQTT topic whose levels may have names: `plant/{line}/{device}`. `{name}` stands for one
level, `{name+}` for one or more, `+` for one level nobody asks for, a last `#` for any rest. The device id
is all named levels but `{field}`, joined by "/" in topic order: two lines may each have a `pump-1`, and they
stay two devices. With a `{field}` level each message shows one field of its device; a number that the payload
calls something else than `value` is then `<field>.<name>`. Include, exclude and rename see that name.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gruard.daemon.decoders import DECODERS, NAMELESS, VALUE, Decoder, FieldNames, Sample, usable_name
from gruard.daemon.errors import DecodeError
from gruard.daemon.records import Message, Reading, SourceOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: MQTT 3.1.1 section 1.5.3: a string is at most this long in UTF-8.
MAX_TOPIC_BYTES = 65_535

#: Longest device id in characters.
MAX_DEVICE_CHARS = 128

#: 2024-01-01. Before it the machine's clock has not been set yet: a gateway without a battery boots in 1970
#: or on the day of its image, and such a clock cannot say that a device is ahead of its time.
CLOCK_SET_S = 1_704_067_200.0

#: Topics whose meaning is remembered: three each for the 10,000 devices of the default cap.
#: A full memory is emptied; working a topic out again costs a few microseconds.
MAX_REMEMBERED_TOPICS = 32_768

#: Longer topics are worked out anew each time, so that the memory above is bounded in bytes too.
MAX_REMEMBERED_TOPIC_CHARS = 256

_NAMED_LEVEL = re.compile(r"\{(?P<name>[a-z][a-z0-9_]*)(?P<several>\+?)\}")

# Beside letters, digits and combining marks of any script. Real friendly names and OPC UA node ids need
# these; quotes, angle brackets, backslashes, backquotes, $ and | are left out because ids reach web pages,
# labels and scripts of other people, and + and # because ids become topic levels.
_ID_PUNCTUATION = frozenset(" ._:@/()-,;=[]~&")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A topic pattern, from `parse_pattern`."""

    text: str
    names: tuple[str, ...]  # in topic order
    filter: str  # what to subscribe to; wider than the pattern when a {name+} is followed by more levels
    _regex: re.Pattern[str]

    def match(self, topic: str) -> dict[str, str] | None:
        """Return the text of each named level, or None when `topic` does not fit (MQTT 3.1.1 section 4.7)."""
        if topic.startswith("$") and self.filter.startswith("+"):
            return None
        found = self._regex.fullmatch(topic)
        return None if found is None else found.groupdict()


def parse_pattern(pattern: str) -> Pattern:
    """Compile a topic pattern; raise `ValueError` with one sentence for the person who wrote it.

    The sentence does not repeat the pattern: whoever shows it also shows where the pattern stands.
    """
    _check_text(pattern)
    levels = pattern.split("/")
    names: list[str] = []
    filter_levels: list[str] = []
    regex = ""
    several = ""
    for position, level in enumerate(levels):
        last = position == len(levels) - 1
        named = _NAMED_LEVEL.fullmatch(level)
        if (named and named["several"]) or (level == "#" and last):
            if several:
                raise ValueError(
                    f"The topic pattern has both {several} and {level}: only one may span levels."
                )
            several = level
        regex += _level_regex(level, named, first=position == 0, last=last)
        filter_levels.append("#" if several else "+" if named else level)
        if named:
            names.append(named["name"])
    _check_names(names)
    topic_filter = "/".join(filter_levels[: filter_levels.index("#") + 1] if several else filter_levels)
    if topic_filter == "#":
        raise ValueError(
            "The topic pattern subscribes to everything, our own alerts too: begin with a fixed level."
        )
    return Pattern(pattern, tuple(names), topic_filter, re.compile(regex, re.DOTALL))


def _check_text(pattern: str) -> None:
    if not pattern:
        raise ValueError("The topic pattern is empty.")
    if "\0" in pattern:
        raise ValueError("The topic pattern holds a NUL character, which MQTT forbids.")
    try:
        length = len(pattern.encode())
    except UnicodeEncodeError:
        raise ValueError("The topic pattern holds a lone surrogate, which MQTT forbids.") from None
    if length > MAX_TOPIC_BYTES:
        raise ValueError(f"The topic pattern has {length} bytes; MQTT allows {MAX_TOPIC_BYTES}.")
    if pattern.startswith("$share/"):
        raise ValueError("The topic pattern is a shared subscription, which would split devices' readings.")


def _check_names(names: list[str]) -> None:
    if "device" not in names:
        raise ValueError("The topic pattern names no device: write {device} for the level that does.")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"The topic pattern uses {{{repeated[0]}}} twice.")


def _level_regex(level: str, named: re.Match[str] | None, *, first: bool, last: bool) -> str:
    slash = "" if first else "/"
    if named:
        # May be empty here as for MQTT: an empty device id is refused by its own reason, not as unknown.
        return f"{slash}(?P<{named['name']}>{'.*' if named['several'] else '[^/]*'})"
    if level == "+":
        return f"{slash}[^/]*"
    if level == "#" and last:
        return "(?:/.*)?"  # a/# fits a itself
    if not level:
        raise ValueError(
            "The topic pattern has an empty level: drop the slash, "
            "or write + for a level that is empty in the topics."
        )
    if "+" in level or "#" in level:
        raise ValueError("The topic pattern: + must be a whole level, and # the whole last one.")
    if "{" in level or "}" in level:
        raise ValueError(
            "The topic pattern: a named level is {name} or {name+} and nothing else, "
            "with a name of small letters, digits and _."
        )
    return slash + re.escape(level)


@dataclass(frozen=True, slots=True)
class _Source:
    options: SourceOptions
    pattern: Pattern
    decoder: Decoder
    names: FieldNames  # for a {field} level: the decoder alone cannot know the whole name


@dataclass(frozen=True, slots=True)
class _Route:
    """What a topic means."""

    source: _Source
    device: str
    field: str | None


class Sources:
    """All `[[sources]]` together: what to subscribe to, and from messages to readings.

    Raises `ValueError`, naming the source, for a bad pattern, an unknown decoder, options that a decoder
    cannot follow, or a name used twice.
    """

    def __init__(self, options: Sequence[SourceOptions], beside: Sequence[tuple[str, int]] = ()) -> None:
        """`beside`: filters and QoS that are subscribed to for another purpose."""
        self._sources = tuple(map(_source, options))
        self._beside = tuple(beside)
        self._routes: dict[str, _Route] = {}
        names = [source.options.name for source in self._sources]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"Two sources are called {repeated[0]!a}.")

    @property
    def filters(self) -> list[tuple[str, int]]:
        """Topic filters and QoS to subscribe with; one that another covers is merged into it."""
        own = ((source.pattern.filter, source.options.qos) for source in self._sources)
        return _merged((*own, *self._beside))

    def decode(self, message: Message) -> list[Reading]:
        """Turn a message into one reading for each sample in it, by the first source whose pattern fits.

        A message is taken whole or refused whole. Raises `DecodeError` and nothing else, whatever the topic
        and the payload: `unknown_topic`, `bad_device_id`, `retained`, `empty`, `too_large`, `future_time`,
        or what the decoder of the source raises.
        """
        route = self._routes.get(message.topic) or self._find_route(message.topic)
        source = route.source
        if message.retain:
            raise DecodeError("retained", "a stored copy, not a fresh reading")
        if not message.payload:
            raise DecodeError("empty", "no bytes at all")
        if len(message.payload) > source.options.max_payload_bytes:
            raise DecodeError(
                "too_large", f"{len(message.payload)} bytes, allowed are {source.options.max_payload_bytes}"
            )
        return [_reading(route, sample, message.received_s) for sample in source.decoder(message.payload)]

    def _find_route(self, topic: str) -> _Route:
        for source in self._sources:
            levels = source.pattern.match(topic)
            if levels is not None:
                break
        else:
            raise DecodeError("unknown_topic", f"{topic[:MAX_DEVICE_CHARS]!a} fits no source")
        field = levels.pop("field", None)
        if field is not None:
            field = field.replace("/", ".")
            if not usable_name(field):
                raise DecodeError("unknown_topic", f"{field[:MAX_DEVICE_CHARS]!a} cannot be a field name")
        route = _Route(source, _device_id("/".join(levels.values())), field)
        if len(self._routes) >= MAX_REMEMBERED_TOPICS:
            self._routes.clear()
        if len(topic) <= MAX_REMEMBERED_TOPIC_CHARS:
            self._routes[topic] = route
        return route


def _source(options: SourceOptions) -> _Source:
    try:
        pattern = parse_pattern(options.topic)
        names = FieldNames(include=options.include, exclude=options.exclude, rename=options.rename)
        if "field" in pattern.names:
            unnamed = replace(options, include=(), exclude=(), rename={})
            return _Source(options, pattern, _decoder(unnamed), names)
        return _Source(options, pattern, _decoder(options), names)
    except ValueError as error:
        raise ValueError(f"Source {options.name!a}: {error}") from None


def _decoder(options: SourceOptions) -> Decoder:
    if options.decoder not in DECODERS:
        known = ", ".join(sorted(DECODERS))
        raise ValueError(f"There is no decoder {options.decoder!a}; there are {known}.")
    return DECODERS[options.decoder](options)


def _reading(route: _Route, sample: Sample, received_s: float) -> Reading:
    options = route.source.options
    time_s = sample.time_s
    if time_s is None:
        time_s = received_s
    elif time_s > received_s + options.future_tolerance_s and received_s >= CLOCK_SET_S:
        raise DecodeError("future_time", f"the event time is {time_s - received_s:.0f} s ahead of arrival")
    if route.field is None:
        return Reading(
            route.device,
            options.name,
            time_s,
            received_s,
            sample.values,
            sample.issues,
            sequence=sample.sequence,
        )
    values, issues = _under(route.field, sample, route.source.names)
    return Reading(
        route.device,
        options.name,
        time_s,
        received_s,
        values,
        issues,
        growing=True,
        sequence=sample.sequence,
    )


def _under(field: str, sample: Sample, names: FieldNames) -> tuple[dict[str, float], dict[str, str]]:
    """Return values and issues of `sample` under the names they have with the topic's `field` in front."""

    def renamed(inner: str) -> str | None:
        return names[field if inner == VALUE else f"{field}.{inner}"] if inner != NAMELESS else NAMELESS

    values = {name: value for inner, value in sample.values.items() if (name := renamed(inner))}
    if not values:
        raise DecodeError("no_numeric_field", "include and exclude leave nothing of the payload")
    issues = {
        name: reason
        for inner, reason in sample.issues.items()
        if (name := renamed(inner)) is not None and name not in values
    }
    return values, issues


def _device_id(device: str) -> str:
    """Return `device` when it may be a device id; raise `DecodeError` `bad_device_id` when not."""
    if not 0 < len(device) <= MAX_DEVICE_CHARS:
        raise DecodeError("bad_device_id", f"{len(device)} characters, allowed are 1 to {MAX_DEVICE_CHARS}")
    for character in device:
        if character not in _ID_PUNCTUATION and unicodedata.category(character)[0] not in "LMN":
            raise DecodeError("bad_device_id", f"{character!a} is not allowed in a device id")
    if device != device.strip(" "):
        raise DecodeError("bad_device_id", f"{device!a} begins or ends with a space")
    # Ids become topics and file names of other people's tools, where these would climb or collapse.
    if not {"", ".", ".."}.isdisjoint(device.split("/")):
        raise DecodeError("bad_device_id", f"{device!a} has a level that is empty, . or ..")
    return device


def _merged(filters: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    strongest: dict[str, int] = {}
    for topic_filter, qos in filters:
        strongest[topic_filter] = max(qos, strongest.get(topic_filter, 0))
    widest = [one for one in strongest if not any(_covers(other, one) for other in strongest if other != one)]
    return [(wide, max(qos for one, qos in strongest.items() if _covers(wide, one))) for wide in widest]


def _covers(wide: str, narrow: str) -> bool:
    """True when every topic that fits the filter `narrow` fits `wide` (MQTT 3.1.1 section 4.7)."""
    narrow_levels = narrow.split("/")
    wide_levels = wide.split("/")
    if narrow.startswith("$") and wide_levels[0] != narrow_levels[0]:
        return False
    for position, level in enumerate(wide_levels):
        if level == "#":
            return True
        if position == len(narrow_levels):
            return False
        if narrow_levels[position] != level and (level != "+" or narrow_levels[position] == "#"):
            return False
    return len(wide_levels) == len(narrow_levels)
