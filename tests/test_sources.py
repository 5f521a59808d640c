from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from gruard.daemon.core.sources import (
    CLOCK_SET_S,
    MAX_DEVICE_CHARS,
    MAX_REMEMBERED_TOPIC_CHARS,
    MAX_REMEMBERED_TOPICS,
    MAX_TOPIC_BYTES,
    Sources,
    parse_pattern,
)
from gruard.daemon.errors import DecodeError
from gruard.daemon.records import Message, Reading, SourceOptions

RECEIVED_S = 1_750_000_000.0


def source(topic: str = "sensors/{device}", **options: object) -> SourceOptions:
    return SourceOptions(**{"name": "s", "topic": topic, **options})  # type: ignore[arg-type]


def message(topic: str = "sensors/pump-1", payload: bytes = b'{"a":1}', *, retain: bool = False) -> Message:
    return Message(topic, payload, RECEIVED_S, retain=retain)


def reason(sources: Sources, refused: Message) -> str:
    with pytest.raises(DecodeError) as refusal:
        sources.decode(refused)
    return refusal.value.reason


# Patterns.


@pytest.mark.parametrize(
    ("pattern", "topic_filter", "topic", "levels"),
    [
        ("sensors/{device}", "sensors/+", "sensors/p1", {"device": "p1"}),
        ("plant/{line}/{device}", "plant/+/+", "plant/a/p1", {"line": "a", "device": "p1"}),
        ("{device}/tele", "+/tele", "p1/tele", {"device": "p1"}),
        ("s/+/{device}/x", "s/+/+/x", "s/any/p1/x", {"device": "p1"}),
        ("s/{device}/#", "s/+/#", "s/p1/x/y", {"device": "p1"}),
        ("s/{device}/#", "s/+/#", "s/p1", {"device": "p1"}),
        ("s/{device}/{field}", "s/+/+", "s/p1/t", {"device": "p1", "field": "t"}),
        ("z/{device+}", "z/#", "z/hall/lamp 2", {"device": "hall/lamp 2"}),
        ("z/{device+}", "z/#", "z/lamp", {"device": "lamp"}),
        ("z/{device+}/state", "z/#", "z/hall/lamp/state", {"device": "hall/lamp"}),
        ("z/{device+}/{field}", "z/#", "z/a/b/c", {"device": "a/b", "field": "c"}),
        ("z/{device}/{field+}", "z/+/#", "z/a/b/c", {"device": "a", "field": "b/c"}),
        ("z/{site}/{device+}/end/+", "z/+/#", "z/s/a/b/end/x", {"site": "s", "device": "a/b"}),
        ("$aws/things/{device}/up", "$aws/things/+/up", "$aws/things/t/up", {"device": "t"}),
        ("a.b*c(/{device}", "a.b*c(/+", "a.b*c(/p", {"device": "p"}),
        ("s/{device}", "s/+", "s/", {"device": ""}),
        ("s/{device}", "s/+", "s/a\nb", {"device": "a\nb"}),
        ("+/{device}", "+/+", "/p1", {"device": "p1"}),
    ],
)
def test_pattern_gives_its_filter_and_named_levels(
    pattern: str, topic_filter: str, topic: str, levels: dict[str, str]
) -> None:
    """A pattern subscribes with the filter for it and reads its named levels in topic order."""
    parsed = parse_pattern(pattern)
    assert parsed.filter == topic_filter
    assert list((parsed.match(topic) or {}).items()) == list(levels.items())


@pytest.mark.parametrize(
    ("pattern", "topic"),
    [
        ("sensors/{device}", "sensors"),
        ("sensors/{device}", "sensors/a/b"),
        ("sensors/{device}", "Sensors/a"),
        ("sensors/{device}", "xsensors/a"),
        ("sensors/{device}", "/sensors/a"),
        ("a.b/{device}", "axb/p"),
        ("z/{device+}", "z"),
        ("z/{device+}/state", "z/a/b/set"),
        ("z/{device+}/state", "z/state"),
        ("{device}/tele", "$SYS/tele"),
        ("+/{device}", "$SYS/broker"),
        ("$SYS/{device}", "SYS/p"),
    ],
)
def test_pattern_does_not_fit_other_topics(pattern: str, topic: str) -> None:
    """Levels must agree in number and text, and no wildcard stands for a first level that begins with $."""
    assert parse_pattern(pattern).match(topic) is None


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("", "is empty"),
        ("#", "names no device"),
        ("sensors/+", "names no device"),
        ("sensors/{field}", "names no device"),
        ("{device+}", "subscribes to everything"),
        ("{device+}/state", "subscribes to everything"),
        ("s/{device}/{device}", "uses {device} twice"),
        ("s/{line}/{device}/{line}", "uses {line} twice"),
        ("s/{line+}/{device+}", "only one may span levels"),
        ("s/{device+}/#", "only one may span levels"),
        ("s/#/{device}", "# the whole last one"),
        ("s/{device}/a#", "# the whole last one"),
        ("s/{device}/a+", "+ must be a whole level"),
        ("/s/{device}", "empty level"),
        ("s//{device}", "empty level"),
        ("s/{device}/", "empty level"),
        ("s/x{device}", "a named level is"),
        ("s/{device}y", "a named level is"),
        ("s/{Device}", "a named level is"),
        ("s/{dev ice}", "a named level is"),
        ("s/{device/x", "a named level is"),
        ("s/{}", "a named level is"),
        ("s/{device}/a\0b", "NUL"),
        ("s/{device}/\ud800", "lone surrogate"),
        ("$share/group/s/{device}", "shared subscription"),
        ("{device}/" + "x" * MAX_TOPIC_BYTES, "65535"),
        ("{device}/" + "ö" * (MAX_TOPIC_BYTES // 2), "65535"),
    ],
)
def test_pattern_with_a_mistake_is_refused_in_a_sentence(pattern: str, sentence: str) -> None:
    """Each mistake in a pattern is a ValueError whose sentence says what is wrong."""
    with pytest.raises(ValueError, match=r"^The topic pattern.*[.]$") as refusal:
        parse_pattern(pattern)
    assert sentence in str(refusal.value)


def test_pattern_as_long_as_mqtt_allows_is_taken() -> None:
    """The longest topic of MQTT is a pattern; one byte more is not."""
    longest = "{device}/" + "x" * (MAX_TOPIC_BYTES - len("{device}/"))
    assert parse_pattern(longest).match("p/" + longest.partition("/")[2]) == {"device": "p"}
    with pytest.raises(ValueError, match="65536 bytes"):
        parse_pattern(longest + "x")


@st.composite
def patterns(draw: st.DrawFn) -> str:
    """Draw a pattern without a mistake that subscribes to less than everything."""
    levels = draw(st.lists(st.sampled_from(["a", "b", "+", "$x"]), max_size=3))
    device, rest = draw(
        st.sampled_from([("{device}", ""), ("{device+}", ""), ("{device}", "{line+}"), ("{device}", "#")])
    )
    levels.insert(draw(st.integers(0, len(levels))), device)
    if device == "{device+}":
        levels.insert(0, "a")
    return "/".join([*levels, rest] if rest else levels)


TOPICS = st.lists(st.sampled_from(["a", "b", "c", "", "$x", "a\n"]), min_size=1, max_size=6).map("/".join)


@settings(max_examples=500, deadline=None)
@given(patterns(), TOPICS)
def test_pattern_fits_only_what_its_filter_delivers(text: str, topic: str) -> None:
    """A pattern never fits a topic outside its subscription, and fits all of it unless it spans levels."""
    pattern = parse_pattern(text)
    delivered = topic_matches_sub(pattern.filter, topic)
    if pattern.match(topic) is not None:
        assert delivered
    # "z/{device+}" needs a level below z, where the filter z/# fits z as well.
    if "+}" not in text:
        assert (pattern.match(topic) is not None) == delivered


# Subscriptions.


def filters(*topics: tuple[str, int]) -> list[tuple[str, int]]:
    options = [source(topic, name=str(index), qos=qos) for index, (topic, qos) in enumerate(topics)]
    return Sources(options).filters


def test_filters_name_each_source_once() -> None:
    """Sources apart from each other keep their filters and their QoS, in order."""
    assert filters(("a/{device}", 0), ("b/{device}/#", 2)) == [("a/+", 0), ("b/+/#", 2)]


@pytest.mark.parametrize(
    ("topics", "merged"),
    [
        ([("a/{device}", 0), ("a/{device}", 1)], [("a/+", 1)]),
        ([("a/{device}", 1), ("a/{device}", 0)], [("a/+", 1)]),
        ([("a/{device}/x", 2), ("a/{device+}", 0)], [("a/#", 2)]),
        ([("a/{device+}", 1), ("a/{line}/{device}", 0)], [("a/#", 1)]),
        ([("a/{device}/#", 0), ("a/{device}", 1)], [("a/+/#", 1)]),
        ([("{device}/x", 0), ("{line}/{device}", 0), ("a/{device}", 1)], [("+/+", 1)]),
        ([("{device}/x", 0), ("$a/{device}", 1)], [("+/x", 0), ("$a/+", 1)]),
        ([("{line}/{device}", 0), ("$a/{device}", 1)], [("+/+", 0), ("$a/+", 1)]),
        ([("a/{device}/y", 0), ("a/x/{device}", 1)], [("a/+/y", 0), ("a/x/+", 1)]),
        ([("a/{device}", 0), ("a/{device}/#", 0), ("a/{device}/b", 1)], [("a/+/#", 1)]),
    ],
)
def test_filters_that_cover_each_other_are_merged(
    topics: list[tuple[str, int]], merged: list[tuple[str, int]]
) -> None:
    """A filter that another covers is dropped and the higher QoS kept, so no message arrives twice."""
    assert filters(*topics) == merged


@settings(max_examples=300, deadline=None)
@given(st.lists(patterns(), min_size=1, max_size=4), TOPICS)
def test_filters_merged_deliver_what_all_would(texts: list[str], topic: str) -> None:
    """Merging filters neither loses nor adds a topic."""
    merged = filters(*[(text, 1) for text in texts])
    assert any(topic_matches_sub(one, topic) for one, _ in merged) == any(
        topic_matches_sub(parse_pattern(text).filter, topic) for text in texts
    )


# Building.


def test_sources_refuse_an_unknown_decoder() -> None:
    """A decoder that does not exist is refused with the ones that do."""
    with pytest.raises(ValueError, match=r"Source 's': There is no decoder 'jsno'; there are .*json, scalar"):
        Sources([source(decoder="jsno")])


def test_sources_refuse_a_bad_pattern_by_source() -> None:
    """A mistake is reported with the name of its source."""
    with pytest.raises(ValueError, match="Source 'hall': The topic pattern names no device"):
        Sources([source(), source("x/#", name="hall")])


def test_sources_refuse_one_name_for_two() -> None:
    """Two sources of one name would share a group without wanting to."""
    with pytest.raises(ValueError, match="Two sources are called 's'"):
        Sources([source(), source("b/{device}")])


# From message to readings.


def test_reading_carries_device_source_and_both_times() -> None:
    """A plain message becomes one reading whose event time is its arrival."""
    (reading,) = Sources([source()]).decode(message(payload=b'{"a":1.5,"b":null}'))
    assert reading == Reading("pump-1", "s", RECEIVED_S, RECEIVED_S, {"a": 1.5}, {"b": "null"}, growing=False)


def test_readings_of_one_message_have_their_own_times() -> None:
    """Several samples become several readings of one device, each at its own event time."""
    readings = Sources([source(time="ts")]).decode(message(payload=b'[{"ts":5,"a":1},{"ts":9,"a":2}]'))
    assert [(one.device, one.time_s, one.received_s) for one in readings] == [
        ("pump-1", 5.0, RECEIVED_S),
        ("pump-1", 9.0, RECEIVED_S),
    ]


def test_device_id_joins_all_named_levels_but_the_field() -> None:
    """Equal names on two lines are two devices, and the field level is no part of the device."""
    sources = Sources([source("plant/{line}/x/{device}/{field}", decoder="scalar")])
    devices = [sources.decode(message(f"plant/{line}/x/pump-1/t", b"1"))[0].device for line in "ab"]
    assert devices == ["a/pump-1", "b/pump-1"]


def test_first_source_that_fits_takes_the_message() -> None:
    """Where two patterns fit, the order of the sources decides."""
    sources = Sources([source("a/b/{device}", name="narrow"), source("a/{device+}", name="wide")])
    assert sources.decode(message("a/b/c"))[0].source == "narrow"
    assert sources.decode(message("a/x/c"))[0].source == "wide"


@pytest.mark.parametrize(
    ("refused", "expected"),
    [
        (message("other/pump"), "unknown_topic"),
        (message("sensors/a/b"), "unknown_topic"),
        (message(retain=True), "retained"),
        (message(payload=b"", retain=True), "retained"),
        (message(payload=b""), "empty"),
        (message(payload=b"x" * 101), "too_large"),
        (message(payload=b"x" * 100), "not_json"),
        (message("sensors/", b""), "bad_device_id"),
    ],
)
def test_message_that_is_no_reading_is_refused_with_its_reason(refused: Message, expected: str) -> None:
    """What stops a message before its decoder has its own bounded reason."""
    assert reason(Sources([source(max_payload_bytes=100)]), refused) == expected


def test_event_time_is_taken_to_the_tolerance_and_refused_beyond() -> None:
    """An event time may lie ahead of arrival by the tolerance and not more; any past time passes here."""
    sources = Sources([source(time="ts", future_tolerance_s=300.0)])
    for time_s in (0, RECEIVED_S, RECEIVED_S + 300):
        assert sources.decode(message(payload=b'{"a":1,"ts":%d}' % time_s))[0].time_s == time_s
    assert reason(sources, message(payload=b'{"a":1,"ts":%d}' % (RECEIVED_S + 301))) == "future_time"


@pytest.mark.parametrize("received_s", [0.0, 1_600_000_000.0, CLOCK_SET_S - 1])
def test_event_time_is_believed_while_the_clock_is_not_set(received_s: float) -> None:
    """A gateway whose clock still stands before 2024 refuses no device for being ahead of it."""
    sources = Sources([source(time="ts")])
    early = Message("sensors/pump-1", b'{"a":1,"ts":%d}' % RECEIVED_S, received_s)
    assert sources.decode(early)[0].time_s == RECEIVED_S


def test_event_time_ahead_is_refused_from_the_moment_the_clock_is_set() -> None:
    """The first plausible arrival time judges again."""
    sources = Sources([source(time="ts")])
    ahead = Message("sensors/pump-1", b'{"a":1,"ts":%d}' % RECEIVED_S, CLOCK_SET_S)
    assert reason(sources, ahead) == "future_time"


def test_sequence_number_reaches_each_reading() -> None:
    """Every sample of a message brings its own sequence number, beside its time and not among the values."""
    sources = Sources([source(time="ts", sequence="n")])
    readings = sources.decode(message(payload=b'[{"ts":5,"n":1,"a":1},{"ts":6,"n":"2","a":2}]'))
    assert [(r.sequence, r.time_s, r.values) for r in readings] == [(1, 5, {"a": 1}), (2, 6, {"a": 2})]


def test_sequence_number_is_none_where_the_source_names_none() -> None:
    """Without a configured path nothing is taken for a sequence number."""
    (reading,) = Sources([source()]).decode(message(payload=b'{"sequence":7}'))
    assert (reading.sequence, reading.values) == (None, {"sequence": 7})


def test_sequence_number_passes_a_field_level() -> None:
    """A message that shows one field of its device keeps its sequence number."""
    (reading,) = Sources([source("s/{device}/{field}", sequence="n")]).decode(
        message("s/p/t", b'{"value":1,"n":9}')
    )
    assert (reading.sequence, reading.values, reading.growing) == (9, {"t": 1}, True)


def test_one_bad_sample_refuses_the_whole_message() -> None:
    """A message counts once, so no part of it is taken when another is refused."""
    sources = Sources([source(time="ts")])
    payload = b'[{"ts":5,"a":1},{"ts":%d,"a":2}]' % (RECEIVED_S + 86_400)
    assert reason(sources, message(payload=payload)) == "future_time"


# The field level.


def field_sources(**options: object) -> Sources:
    return Sources([source("s/{device}/{field}", **options)])


def test_field_level_names_a_plain_number() -> None:
    """The topic names the field of a plain number, and the reading says that it shows one field only."""
    (reading,) = field_sources(decoder="scalar").decode(message("s/p/temperature", "21,5 °C".encode()))
    assert (reading.device, reading.values, reading.growing) == ("p", {"temperature": 21.5}, True)


def test_field_level_goes_in_front_of_json_names() -> None:
    """`value` takes the name of the level, other names go below it, and nameless issues stay nameless."""
    payload = b'{"value":1,"battery":2,"unit":"C","deep":{"x":3},"\\n":4}'
    (reading,) = field_sources().decode(message("s/p/t", payload))
    assert reading.values == {"t": 1, "t.battery": 2, "t.deep.x": 3}
    assert reading.issues == {"t.unit": "string", "": "object"}


def test_field_level_spanning_levels_gives_dots() -> None:
    """A field over several levels is a dotted name."""
    (reading,) = Sources([source("h/{device}/{field+}", decoder="scalar")]).decode(message("h/p/a/b", b"1"))
    assert reading.values == {"a.b": 1}


def test_field_level_comes_under_include_exclude_and_rename() -> None:
    """Patterns and new names see the name that the topic gives."""
    sources = field_sources(include=("t", "h*"), exclude=("h.raw",), rename={"t": "temperature"})
    assert sources.decode(message("s/p/t", b'{"value":1,"raw":2}'))[0].values == {
        "temperature": 1,
        "t.raw": 2,
    }
    assert sources.decode(message("s/p/h", b'{"value":1,"raw":2}'))[0].values == {"h": 1}
    assert reason(sources, message("s/p/uptime", b'{"value":1}')) == "no_numeric_field"


def test_field_level_renames_into_one_name_keep_the_number() -> None:
    """When renaming brings a number and an issue under one name, the number stays."""
    sources = field_sources(rename={"t.a": "x", "t.b": "x"})
    (reading,) = sources.decode(message("s/p/t", b'{"a":1,"b":null}'))
    assert (reading.values, reading.issues) == ({"x": 1}, {})


@pytest.mark.parametrize("level", ["", "a\nb", "x" * 129, "\x1b[0m"])
def test_field_level_that_cannot_be_a_name_fits_no_source(level: str) -> None:
    """A field level that could not be stored or shown makes the topic unknown."""
    assert reason(field_sources(decoder="scalar"), message(f"s/p/{level}", b"1")) == "unknown_topic"


# Device ids.


@pytest.mark.parametrize(
    "device",
    [
        "pump-1",
        "0x00158d0001a2b3c4",
        "45:F6:8A:76:86:C5",
        "Kitchen lamp",
        "Küche (Süd)",
        "温度计",
        "थर्मामीटर",
        "Cafe\u0301",
        "a.b_c@d,e;f=g[h]~i&j",
        "ns=2;s=Boiler.T1",
        "a..b",
        "d" * MAX_DEVICE_CHARS,
    ],
)
def test_device_id_in_common_use_is_taken(device: str) -> None:
    """Addresses, friendly names in any script and node ids are device ids as they are."""
    sources = Sources([source("z/{device+}")])
    assert sources.decode(message(f"z/{device}"))[0].device == device
    assert sources.decode(message(f"z/hall/{device[:100]}"))[0].device == f"hall/{device[:100]}"


@pytest.mark.parametrize(
    "device",
    [
        "",
        " ",
        " a",
        "a ",
        ".",
        "..",
        "../a",
        "a/../b",
        "a/./b",
        "a//b",
        "/a",
        "a/",
        "a+",
        "a#",
        "a\0",
        "a\n",
        "a\x1b",
        "a\x7f",
        "a\x9b",
        "a\u00a0b",
        "a\u202eb",
        "a\u200db",
        "\ud800",
        "\ue000",
        "\U0001f321",
        'a"b',
        "a'b",
        "a`b",
        "a\\b",
        "a<b",
        "a$b",
        "a|b",
        "a{b",
        "a%b",
        "a*b",
        "d" * (MAX_DEVICE_CHARS + 1),
    ],
)
def test_device_id_that_could_do_harm_is_refused(device: str) -> None:
    """Control characters, wildcards, quotes, climbing levels and overlong ids are bad_device_id."""
    sources = Sources([source("z/{device+}")])
    for _ in range(2):
        assert reason(sources, message(f"z/{device}")) == "bad_device_id"


# The memory for topics.


def test_topics_are_remembered_to_a_limit_in_number_and_length() -> None:
    """A flood of topics cannot make the memory grow without end, and meanings stay right across it."""
    sources = Sources([source("s/{device+}")])
    for index in range(MAX_REMEMBERED_TOPICS + 10):
        assert sources.decode(message(f"s/{index}"))[0].device == str(index)
    assert len(sources._routes) == 10
    assert sources.decode(message("s/0"))[0].device == "0"


def test_long_topics_and_refused_ones_are_not_remembered() -> None:
    """Only topics of ordinary length with a good device stay in memory."""
    fixed = "x" * MAX_REMEMBERED_TOPIC_CHARS
    sources = Sources([source(f"{fixed}/{{device}}"), source("s/{device}", name="t")])
    assert sources.decode(message(f"{fixed}/a"))[0].device == "a"
    for topic in ("s/ a", "unknown"):
        with pytest.raises(DecodeError):
            sources.decode(message(topic))
    assert not sources._routes
