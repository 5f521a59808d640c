"""JSON objects, flat or nested, one or an array of them (RFC 8259).

`{"motor": {"rpm": 1}, "phase": [2, 3]}` becomes `motor.rpm`, `phase.0` and `phase.1`. Of two numbers for
one field the later wins, and a number wins over anything that is none.
"""

from __future__ import annotations

from glob import escape
from itertools import islice
from types import NoneType
from typing import TYPE_CHECKING, Any

import msgspec

from gruard.daemon.decoders.event_time import parse_time
from gruard.daemon.decoders.sample import MAX_MAGNITUDE, MAX_NAME_CHARS, NAMELESS, FieldNames, Sample
from gruard.daemon.decoders.sequence import parse_sequence
from gruard.daemon.errors import DecodeError

if TYPE_CHECKING:
    from gruard.daemon.records import SourceOptions

#: Objects inside objects that are followed. Payloads of LoRaWAN network servers, the deepest known, have six.
MAX_DEPTH = 16

#: Samples in one array. A gateway that was offline for a quarter of an hour at 1 Hz sends 900.
MAX_SAMPLES = 1000

#: Keys and array elements in one message, over all samples and levels: bounds what one message costs.
MAX_KEYS = 6144

_ELEMENT_TYPES = frozenset({int, float, NoneType})
_ISSUES = {bool: "bool", NoneType: "null", str: "string"}


class JsonObject:
    """The decoder `json`: `JsonObject(options)(payload)` is one sample for each object.

    Numbers are values. Null, strings, bools, empty objects, arrays of anything but numbers and nulls, and
    numbers beyond `MAX_MAGNITUDE` are issues. An array longer than `max_fields` is wanted or not as a whole,
    by the name of its first element. Strict as msgspec is: NaN, Infinity, 1e400, integers of more than 4300
    digits, lone surrogates, a byte order mark and trailing bytes make the payload `not_json`.

    Raises `DecodeError`: `not_text`, `not_json`, `too_deep`, `not_object`, `too_large`, `too_many_fields`,
    `no_numeric_field`, `missing_time`, `bad_time`, `missing_sequence`, `bad_sequence`.
    """

    def __init__(self, options: SourceOptions) -> None:
        # What places a reading is not a value of it, so both paths join the excluded names.
        placing = [escape(path) for path in (options.time, options.sequence) if path is not None]
        exclude = (*options.exclude, *placing)
        self._json = msgspec.json.Decoder()
        self._names = FieldNames(include=options.include, exclude=exclude, rename=options.rename)
        self._max_fields = options.max_fields
        self._time = options.time
        self._sequence = options.sequence

    def __call__(self, payload: bytes) -> list[Sample]:
        """Decode one message."""
        parsed = self._parse(payload)
        fields = _Fields(self._names, self._max_fields)
        if type(parsed) is dict:
            return [self._sample(parsed, fields)]
        if type(parsed) is not list:
            raise DecodeError("not_object", "neither an object nor an array of objects")
        if len(parsed) > MAX_SAMPLES:
            raise DecodeError("too_large", f"more than {MAX_SAMPLES} samples in one message")
        if not parsed:
            raise DecodeError("no_numeric_field", "an empty array")
        return [self._sample(item, fields) for item in parsed]

    def _parse(self, payload: bytes) -> Any:
        try:
            return self._json.decode(payload)
        except RecursionError:
            raise DecodeError("too_deep", "nested deeper than the parser follows") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            # The parser stops at the first fault of either kind; bytes that are no text say more.
            try:
                payload.decode()
            except UnicodeDecodeError:
                raise DecodeError("not_text", "not UTF-8") from None
            raise DecodeError("not_json", str(error)) from None

    def _sample(self, item: Any, fields: _Fields) -> Sample:
        if type(item) is not dict:
            raise DecodeError("not_object", "an array of something else than objects")
        values, issues = fields.of(item)
        if not values:
            seen = ", ".join(f"{name!a} ({reason})" for name, reason in islice(issues.items(), 3))
            raise DecodeError("no_numeric_field", f"no number that can be used; seen: {seen or 'nothing'}")
        time_s = None if self._time is None else parse_time(_follow(item, self._time, "missing_time"))
        sequence = None
        if self._sequence is not None:
            sequence = parse_sequence(_follow(item, self._sequence, "missing_sequence"))
        return Sample(values, time_s, issues, sequence)


class _Fields:
    """Flattens the samples of one message and keeps count of what the message has cost so far."""

    __slots__ = ("_issues", "_keys_left", "_max_fields", "_names", "_values")

    def __init__(self, names: FieldNames, max_fields: int) -> None:
        self._names = names
        self._max_fields = max_fields
        self._keys_left = MAX_KEYS

    def of(self, item: dict[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
        """Return the values and the issues of one sample, each field in one of them."""
        self._values: dict[str, float] = {}
        self._issues: dict[str, str] = {}
        self._walk(item, "", 1)
        for name in self._issues.keys() & self._values.keys() if self._issues else ():
            del self._issues[name]
        return self._values, self._issues

    def _walk(self, item: dict[str, Any], prefix: str, depth: int) -> None:
        self._spend(len(item))
        for key, value in item.items():
            kind = type(value)
            if kind is float or kind is int:
                self._number(prefix + key, value)
            elif kind is dict and value:
                self._object(prefix + key, value, depth + 1)
            elif kind is list and value and _ELEMENT_TYPES.issuperset(map(type, value)):
                self._array(prefix + key, value)
            else:
                self._issue(prefix + key, _ISSUES.get(kind, "object"))

    def _spend(self, keys: int) -> None:
        self._keys_left -= keys
        if self._keys_left < 0:
            raise DecodeError("too_large", f"more than {MAX_KEYS} keys and array elements in one message")

    def _number(self, payload_name: str, value: float) -> None:
        name = self._names[payload_name]
        # Compared before conversion: float() of a huge integer overflows.
        if name and -MAX_MAGNITUDE <= value <= MAX_MAGNITUDE:
            self._values[name] = float(value)
            if len(self._values) > self._max_fields:
                raise DecodeError("too_many_fields", f"more than {self._max_fields} numeric fields")
        elif name is not None:
            self._issues[name] = "out_of_range" if name else "object"

    def _issue(self, payload_name: str, reason: str) -> None:
        name = self._names[payload_name]
        if name is not None:
            self._issues[name] = reason if name else "object"

    def _object(self, payload_name: str, value: dict[str, Any], depth: int) -> None:
        if depth > MAX_DEPTH:
            raise DecodeError("too_deep", f"objects nested more than {MAX_DEPTH} deep")
        if len(payload_name) < MAX_NAME_CHARS:
            self._walk(value, payload_name + ".", depth)
        else:
            # No name below can be used; joining each to a prefix of any length would cost a copy of it.
            self._issues[NAMELESS] = "object"

    def _array(self, payload_name: str, value: list[float | None]) -> None:
        if len(value) > self._max_fields:
            if self._names[f"{payload_name}.0"]:
                raise DecodeError("too_many_fields", f"an array of more than {self._max_fields} numbers")
            return
        self._spend(len(value))
        for index, element in enumerate(value):
            if element is None:
                self._issue(f"{payload_name}.{index}", "null")
            else:
                self._number(f"{payload_name}.{index}", element)


def _follow(item: dict[str, Any], path: str, missing: str) -> object:
    """Return what stands at the dotted `path`; a key that has the dots in its own name goes first."""
    if path in item:
        return item[path]
    found: Any = item
    for level in path.split("."):
        if type(found) is dict and level in found:
            found = found[level]
        elif type(found) is list and level.isdecimal() and int(level) < len(found):
            found = found[int(level)]
        else:
            raise DecodeError(missing, f"no {path!a} in the payload")
    return found
