from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support_payloads import HOSTILE, HOSTILE_TOPICS, LIMIT_BYTES
from support_sources import GOOD, OPTIONS, check_refusal, outcome

from gruard.daemon.core.sources import Sources
from gruard.daemon.decoders import DECODERS
from gruard.daemon.errors import DecodeError
from gruard.daemon.records import SourceOptions


def test_hostile_list_is_long_and_its_names_are_unique() -> None:
    """The list keeps its promise of at least 300 payloads, each to be found by its name."""
    assert len(HOSTILE) >= 300
    assert len({name for name, _ in HOSTILE}) == len(HOSTILE)
    assert len({payload for _, payload in HOSTILE}) == len(HOSTILE)
    assert len({name for name, _ in HOSTILE_TOPICS}) == len(HOSTILE_TOPICS)


@pytest.mark.parametrize("payload", [pytest.param(payload, id=name) for name, payload in HOSTILE])
def test_hostile_payload_ends_as_reading_or_refusal(payload: bytes) -> None:
    """Every hostile payload becomes sound readings or a counted refusal, whatever the source."""
    results = [outcome(f"{level}/pump/t", payload) for level in OPTIONS]
    if not payload:
        assert set(map(str, results)) == {"empty"}
    if len(payload) > LIMIT_BYTES:
        assert set(map(str, results)) == {"too_large"}


def test_hostile_payloads_leave_their_neighbours_alone() -> None:
    """A good reading decodes the same after each hostile payload as before all of them."""
    sources = Sources(list(OPTIONS.values()))
    before = outcome("plain/pump", GOOD, sources)
    assert isinstance(before, list)
    for name, payload in HOSTILE:
        outcome("plain/pump", payload, sources)
        assert outcome("plain/pump", GOOD, sources) == before, name


@pytest.mark.parametrize("kind", DECODERS)
def test_hostile_payload_straight_into_a_decoder_is_decoded_or_refused(kind: str) -> None:
    """A decoder alone, without the checks in front of it, raises nothing but its own error either."""
    decode = DECODERS[kind](SourceOptions("s", "t/{device}", decoder=kind))
    refused = 0
    for _, payload in HOSTILE:
        try:
            assert decode(payload)
        except DecodeError as error:
            refused += 1
            check_refusal(error)
    assert 0 < refused < len(HOSTILE)


@pytest.mark.parametrize("tail", [pytest.param(tail, id=name) for name, tail in HOSTILE_TOPICS])
def test_hostile_topic_ends_as_reading_or_refusal(tail: str) -> None:
    """Every hostile topic becomes a device with a sound id or a counted refusal."""
    outcome(f"plain/{tail}", GOOD)
    outcome(f"grown/{tail}", GOOD)
    outcome(f"grown/pump/{tail}", GOOD)
    assert outcome(f"other/{tail}", GOOD) == "unknown_topic"
    assert outcome(f"$SYS/{tail}", GOOD) == "unknown_topic"


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(sorted(OPTIONS)), st.binary(max_size=400))
def test_random_bytes_end_as_reading_or_refusal(level: str, payload: bytes) -> None:
    """Bytes without any form become readings or refusals."""
    outcome(f"{level}/pump/t", payload)


@settings(max_examples=500, deadline=None)
@given(
    level=st.sampled_from(sorted(OPTIONS)),
    payload=st.sampled_from([GOOD, b'[{"a":1},{"a":2.5e3}]', b'{"a":1700000000,"k":-1}', b"21.5 C"]),
    edits=st.lists(st.tuples(st.integers(0, 80), st.integers(0, 3), st.binary(max_size=4)), max_size=6),
)
def test_damaged_payload_ends_as_reading_or_refusal(
    level: str, payload: bytes, edits: list[tuple[int, int, bytes]]
) -> None:
    """Good payloads with bytes replaced, cut out or put in become readings or refusals."""
    for position, removed, inserted in edits:
        payload = payload[:position] + inserted + payload[position + removed :]
    outcome(f"{level}/pump/t", payload)


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(sorted(OPTIONS)), st.text(st.characters(), max_size=40), st.text("/+#.$ a\n", max_size=8)
)
@example("plain", "\ud800", "")
def test_random_topic_ends_as_reading_or_refusal(level: str, text: str, tail: str) -> None:
    """Any text as a topic, lone surrogates included, becomes a sound device id or a refusal."""
    for topic in (text, f"{level}/{text}", f"{level}/{text}{tail}", f"{level}/a/{tail}{text}"):
        outcome(topic, b"1" if level.startswith("scalar") else b'{"a":1}')


NUMBERS = st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False)
KEYS = st.sampled_from(["a", "b", "a.b", "0", "k", "", "ts"]) | st.text(max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=25,
)


def reference(parsed: dict[str, Any]) -> dict[str, float]:
    """Flatten by the written rules in the plainest way, as a second opinion."""
    found: dict[str, float] = {}

    def visit(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(f"{name}.{key}", inner)
        elif isinstance(value, list):
            if all(isinstance(one, float | int | None) and not isinstance(one, bool) for one in value):
                for index, inner in enumerate(value):
                    visit(f"{name}.{index}", inner)
        elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e15:
            name = name[1:]
            if 0 < len(name) <= 128 and name.isprintable():
                found[name] = float(value)

    visit("", parsed)
    return found


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(KEYS, JSON, max_size=6))
def test_grammatical_object_decodes_as_the_standard_parser_and_the_rules_say(parsed: dict[str, Any]) -> None:
    """For any JSON object the values are those of a second, plain implementation on the standard parser."""
    try:
        payload = json.dumps(parsed, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        payload = json.dumps(parsed).encode()
        assert outcome("plain/pump", payload) == "not_json"
        return
    expected = reference(json.loads(payload))
    result = outcome("plain/pump", payload)
    if not expected:
        assert result == "no_numeric_field"
    elif len(expected) > OPTIONS["plain"].max_fields:
        assert result == "too_many_fields"
    else:
        assert isinstance(result, list)
        assert [reading.values for reading in result] == [expected]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(OPTIONS)), JSON)
def test_grammatical_json_of_any_kind_ends_as_reading_or_refusal(level: str, parsed: Any) -> None:
    """JSON of any kind, also where an object or an event time is expected, becomes readings or refusals."""
    outcome(f"{level}/pump/t", json.dumps(parsed).encode())
    outcome(f"{level}/pump/t", json.dumps([{"a": parsed, "k": 1}, {"a": 1, "k": parsed}]).encode())
