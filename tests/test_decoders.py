from __future__ import annotations

import math
import time

import pytest

from gruard.daemon.decoders import (
    DECODERS,
    MAX_MAGNITUDE,
    NAMELESS,
    Decoder,
    FieldNames,
    Sample,
    parse_sequence,
    parse_time,
    usable_name,
)
from gruard.daemon.decoders.event_time import LATEST_TIME_S
from gruard.daemon.decoders.json_object import MAX_DEPTH, MAX_KEYS, MAX_SAMPLES
from gruard.daemon.decoders.sample import MAX_NAME_CHARS, MAX_REMEMBERED_NAMES
from gruard.daemon.decoders.scalar import MAX_SCALAR_CHARS
from gruard.daemon.errors import DecodeError
from gruard.daemon.records import SourceOptions


def decoder(kind: str = "json", **options: object) -> Decoder:
    return DECODERS[kind](SourceOptions(name="s", topic="t/{device}", decoder=kind, **options))  # type: ignore[arg-type]


def one(payload: bytes, **options: object) -> Sample:
    (sample,) = decoder(**options)(payload)
    return sample


def reason(payload: bytes, kind: str = "json", **options: object) -> str:
    with pytest.raises(DecodeError) as refusal:
        decoder(kind, **options)(payload)
    return refusal.value.reason


# The decoder json: shape.


def test_json_flat_object_gives_its_numbers_as_floats() -> None:
    """Whole and broken numbers of a flat object become float values under their own names."""
    sample = one(b'{"temperature":21.5,"count":3,"low":-4e-3}')
    assert sample == Sample({"temperature": 21.5, "count": 3.0, "low": -0.004}, None, {})
    assert {type(value) for value in sample.values.values()} == {float}


def test_json_nested_object_gives_dotted_names() -> None:
    """Objects in objects and arrays of numbers become names with dots."""
    sample = one(b'{"motor":{"rpm":1,"bearing":{"t":2}},"phase":[3,4]}')
    assert sample.values == {"motor.rpm": 1, "motor.bearing.t": 2, "phase.0": 3, "phase.1": 4}


def test_json_array_of_objects_gives_samples_in_order() -> None:
    """An array of objects is one sample for each, in the order of the array."""
    samples = decoder()(b'[{"a":1},{"a":2,"b":null},{"a":3}]')
    assert [sample.values for sample in samples] == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert [sample.issues for sample in samples] == [{}, {"b": "null"}, {}]


@pytest.mark.parametrize(
    ("text", "issue"),
    [
        ("null", "null"),
        ("true", "bool"),
        ("false", "bool"),
        ('"1"', "string"),
        ('""', "string"),
        ("{}", "object"),
        ("[]", "object"),
        ('["1"]', "object"),
        ("[1,true]", "object"),
        ("[[1]]", "object"),
        ('[{"b":1}]', "object"),
        ("1e16", "out_of_range"),
        ("-1e300", "out_of_range"),
        ("1000000000000001", "out_of_range"),
        ("9" * 4300, "out_of_range"),
    ],
)
def test_json_field_that_is_no_usable_number_is_an_issue(text: str, issue: str) -> None:
    """Whatever is no usable number is left out of the values and named with its reason."""
    sample = one(b'{"good":1,"a":' + text.encode() + b"}")
    assert sample.values == {"good": 1}
    assert sample.issues == {"a": issue}


def test_json_largest_magnitude_is_a_value() -> None:
    """The bound itself is still a value, on both sides."""
    assert one(b'{"a":1e15,"b":-1000000000000000}').values == {"a": MAX_MAGNITUDE, "b": -MAX_MAGNITUDE}


def test_json_array_with_nulls_keeps_the_places_of_its_numbers() -> None:
    """A null among numbers is missing at its own index and moves no other number."""
    sample = one(b'{"a":[1,null,3,1e99]}')
    assert sample.values == {"a.0": 1, "a.2": 3}
    assert sample.issues == {"a.1": "null", "a.3": "out_of_range"}


@pytest.mark.parametrize(
    "payload",
    [
        b'{"a.b":null,"a":{"b":5}}',
        b'{"a":{"b":5},"a.b":"x"}',
        b'{"a":{"b":4},"a.b":5}',
        b'{"a":{"b":3,"b":5}}',
    ],
)
def test_json_two_contents_for_one_name_give_the_last_number(payload: bytes) -> None:
    """Of two contents for one name a number wins over anything else and the later of two numbers wins."""
    assert one(payload) == Sample({"a.b": 5}, None, {})


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"21.5", "not_object"),
        (b"null", "not_object"),
        (b'"x"', "not_object"),
        (b"[1,2]", "not_object"),
        (b'[{"a":1},2]', "not_object"),
        (b"[]", "no_numeric_field"),
        (b"{}", "no_numeric_field"),
        (b'{"a":"x"}', "no_numeric_field"),
        (b'{"a":1e99}', "no_numeric_field"),
        (b'[{"a":1},{"a":null}]', "no_numeric_field"),
        (b'{"a":NaN}', "not_json"),
        (b'{"a":1e400}', "not_json"),
        (b'{"a":' + b"9" * 4301 + b"}", "not_json"),
        (b'{"a\\ud800":1}', "not_json"),
        (b'\xef\xbb\xbf{"a":1}', "not_json"),
        (b'{"a":1}\x00', "not_json"),
        ('{"a":1}'.encode("utf-16-be"), "not_json"),
        ('{"a":1}'.encode("utf-16"), "not_text"),
        (b'{"\xff":1}', "not_text"),
        (b'{"a":1,"s":"\xff"}', "not_text"),
        (b"\x1f\x8b\x08\x00", "not_text"),
        (b"[" * 100_000, "too_deep"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "too_deep"),
    ],
)
def test_json_unusable_payload_is_refused_with_its_reason(payload: bytes, expected: str) -> None:
    """Each way in which a payload is unusable has its own bounded reason."""
    assert reason(payload) == expected


def test_json_refusal_for_lack_of_numbers_says_what_was_there() -> None:
    """A person reading the refusal learns which fields were seen and why none counted."""
    with pytest.raises(DecodeError, match=r"'a' \(string\), 'b' \(null\)"):
        decoder()(b'{"a":"21","b":null}')


# The decoder json: limits.


def test_json_nesting_is_followed_to_the_limit_and_refused_beyond() -> None:
    """The deepest allowed nesting decodes; one object more is too_deep."""
    deepest = b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH
    assert one(deepest).values == {".".join("a" * MAX_DEPTH): 1}
    assert reason(b'{"a":' + deepest + b"}") == "too_deep"


def test_json_samples_are_taken_to_the_limit_and_refused_beyond() -> None:
    """As many samples as the limit decode; one more is too_large."""
    assert len(decoder()(b"[" + b'{"a":1},' * (MAX_SAMPLES - 1) + b'{"a":1}]')) == MAX_SAMPLES
    assert reason(b"[" + b'{"a":1},' * MAX_SAMPLES + b'{"a":1}]') == "too_large"


def test_json_fields_are_taken_to_the_limit_and_refused_beyond() -> None:
    """As many numbers as max_fields decode, spread over levels or not; one more is too_many_fields."""
    assert len(one(b'{"a":1,"b":[2,3],"c":{"d":4}}', max_fields=4).values) == 4
    assert reason(b'{"a":1,"b":[2,3],"c":{"d":4,"e":5}}', max_fields=4) == "too_many_fields"
    assert reason(b'{"a":[1,2,3,4,5]}', max_fields=4) == "too_many_fields"


def test_json_fields_that_are_not_wanted_do_not_count() -> None:
    """Excluded numbers leave room for the wanted ones."""
    assert one(b'{"a":1,"x1":1,"x2":1}', max_fields=1, exclude=("x*",)).values == {"a": 1}


def test_json_keys_are_bounded_over_all_samples() -> None:
    """The keys and elements of one message are bounded, however they are spread and whatever they hold."""
    nulls = ",".join(f'"k{index}":null' for index in range(MAX_KEYS - 1)).encode()
    assert len(one(b'{"a":1,' + nulls + b"}").issues) == MAX_KEYS - 1
    assert reason(b'{"a":1,"b":2,' + nulls + b"}") == "too_large"
    assert reason(b'[{"a":1,' + nulls + b'},{"a":1}]') == "too_large"
    arrays = ",".join(f'"k{index}":[{",".join(["null"] * 60)}]' for index in range(MAX_KEYS // 60)).encode()
    assert reason(b'{"a":1,' + arrays + b"}") == "too_large"


def test_json_long_array_that_is_not_wanted_is_passed_over() -> None:
    """A waveform of any length beside the wanted fields costs nothing when it is excluded or not included."""
    payload = b'{"a":1,"wave":[' + b"1," * 20_000 + b"1]}"
    for options in ({"exclude": ("wave",)}, {"exclude": ("wave.*",)}, {"include": ("a",)}):
        assert one(payload, **options) == Sample({"a": 1}, None, {})
    assert reason(payload) == "too_many_fields"


# The decoder json: names.


@pytest.mark.parametrize(
    "key",
    [
        "",
        "a\\nb",
        "a\\u0000",
        "\\u001b[31m",
        "a\\u007f",
        "a\u202eb",
        "a\u200bb",
        "\ue000",
        "k" * 129,
        "k" * 9999,
    ],
)
def test_json_unusable_name_is_dropped_and_seen(key: str) -> None:
    """A field whose name cannot be stored and shown as it is leaves a nameless issue and nothing else."""
    assert one(f'{{"good":1,"{key}":2}}'.encode()) == Sample({"good": 1}, None, {NAMELESS: "object"})
    assert reason(f'{{"{key}":2}}'.encode()) == "no_numeric_field"


def test_json_unusable_name_with_unusable_content_is_one_issue() -> None:
    """What stands under an unusable name does not matter, whether number, word or object."""
    sample = one(b'{"a":1,"\\n":"x","\\t":{"b":1},"\\r":1e99,"' + b"k" * 128 + b'":{"b":1}}')
    assert sample == Sample({"a": 1}, None, {NAMELESS: "object"})


def test_json_object_under_an_overlong_name_is_not_walked() -> None:
    """What stands under a name too long to use costs nothing, however deep or wide it is."""
    deep = b'{"a":' * 50 + b"1" + b"}" * 50
    wide = b"{" + b",".join(b'"%d":1' % index for index in range(MAX_KEYS)) + b"}"
    for below in (deep, wide):
        sample = one(b'{"a":1,"' + b"k" * MAX_NAME_CHARS + b'":' + below + b"}")
        assert sample == Sample({"a": 1}, None, {NAMELESS: "object"})


@pytest.mark.parametrize(
    "key", ["temperature", "Öl °C", "温度", "a b", "é", "\U0001f321", "k" * MAX_NAME_CHARS]
)
def test_json_name_in_any_script_is_kept(key: str) -> None:
    """Printable names of any script are field names as they are."""
    assert one(f'{{"{key}":2}}'.encode()).values == {key: 2}


def test_names_that_pass_can_be_encoded() -> None:
    """No usable name holds a lone surrogate, which could not be written anywhere."""
    assert not usable_name("a\ud800")
    assert not usable_name("\udc00")
    assert usable_name("\U0001f321")


def test_include_keeps_only_the_named_fields() -> None:
    """With include only fields that fit a pattern are values or issues."""
    sample = one(b'{"a":1,"b":2,"c":null,"d":null}', include=("a", "c"))
    assert sample == Sample({"a": 1}, None, {"c": "null"})


def test_exclude_wins_over_include() -> None:
    """A field that both fit is not wanted."""
    sample = one(b'{"t1":1,"t2":2,"u":3}', include=("t*",), exclude=("*2",))
    assert sample.values == {"t1": 1}


def test_pattern_of_an_object_covers_what_is_in_it() -> None:
    """A pattern that fits an object or array speaks for all below it, not for longer names beside it."""
    payload = b'{"motor":{"rpm":1,"deep":{"x":2}},"motors":3,"phase":[4,5]}'
    assert one(payload, include=("motor", "phase")).values == {
        "motor.rpm": 1,
        "motor.deep.x": 2,
        "phase.0": 4,
        "phase.1": 5,
    }
    assert one(payload, exclude=("motor",)).values == {"motors": 3, "phase.0": 4, "phase.1": 5}


def test_patterns_know_case_and_character_sets() -> None:
    """Patterns are fnmatch patterns: case counts, and `?` and `[...]` work."""
    assert one(b'{"T1":1,"t1":2,"t22":3,"x9":4}', include=("t?", "[xy]*")).values == {"t1": 2, "x9": 4}


def test_rename_comes_after_include_and_exclude() -> None:
    """Patterns see payload names, values and issues carry the new ones."""
    sample = one(
        b'{"motor":{"t":1},"x":null,"secret":3}',
        include=("motor.*", "x", "secret"),
        exclude=("secret",),
        rename={"motor.t": "temperature", "x": "pressure", "secret": "open"},
    )
    assert sample == Sample({"temperature": 1}, None, {"pressure": "null"})


def test_rename_to_an_unusable_name_is_a_mistake_found_at_start() -> None:
    """A new name that could not be shown or stored is refused when the source is built."""
    with pytest.raises(ValueError, match="cannot be renamed"):
        decoder(rename={"a": "b\n"})
    with pytest.raises(ValueError, match="cannot be renamed"):
        decoder(rename={"a": ""})


def test_names_are_remembered_to_a_limit() -> None:
    """A sender of ever-changing names cannot make the memory for names grow without end."""
    names = FieldNames(exclude=("b*",))
    for index in range(3 * MAX_REMEMBERED_NAMES):
        assert names[f"a{index}"] == f"a{index}"
        assert names[f"b{index}"] is None
        assert names["x" * (200 + index % 7)] == NAMELESS
    assert len(names) <= MAX_REMEMBERED_NAMES


# The event time.


@pytest.mark.parametrize(
    ("published", "time_s"),
    [
        (0, 0.0),
        (1_700_000_000, 1_700_000_000.0),
        (1_700_000_000.25, 1_700_000_000.25),
        (100_000_000_000, 1e11),
        (1_700_000_000_250, 1_700_000_000.25),
        (1_700_000_000_250_000, 1_700_000_000.25),
        (1_700_000_000_250_000_000, 1_700_000_000.25),
        (1.7e18, 1_700_000_000.0),
        ("1700000000", 1_700_000_000.0),
        (" 1700000000.25 ", 1_700_000_000.25),
        ("1.7e9", 1_700_000_000.0),
        ("1700000000250", 1_700_000_000.25),
        ("2023-11-14T22:13:20Z", 1_700_000_000.0),
        ("2023-11-14t22:13:20z", 1_700_000_000.0),
        ("2023-11-14T22:13:20.25Z", 1_700_000_000.25),
        ("2023-11-14T22:13:20.250000999Z", 1_700_000_000.25),
        ("2023-11-14T22:13:20,25Z", 1_700_000_000.25),
        ("2023-11-15T00:13:20+02:00", 1_700_000_000.0),
        ("2023-11-14T16:43:20-05:30", 1_700_000_000.0),
        ("2023-11-14T22:13:20", 1_700_000_000.0),
        ("2023-11-14 22:13:20", 1_700_000_000.0),
        ("20231114T221320Z", 1_700_000_000.0),
        ("1970-01-01T00:00:00Z", 0.0),
    ],
)
def test_time_in_every_known_form_is_read(published: object, time_s: float) -> None:
    """Unix time in four units, as number or text, and dates near RFC 3339 give Unix seconds."""
    assert parse_time(published) == time_s


@pytest.mark.parametrize(
    "published",
    [
        True,
        False,
        -1,
        -1e18,
        math.nan,
        math.inf,
        10**400,
        1e21,
        "",
        " ",
        "now",
        "nan",
        "-5",
        "0x10",
        "1_700_000_000",
        "9e99",
        "9" * 30,
        "9" * 41,
        "0" * 31 + "1700000000",
        "\u0661\u0667",
        "2023-11-14",
        "2023-13-14T22:13:20Z",
        "2023-02-30T22:13:20Z",
        "2023-11-14T25:00:00Z",
        "2023-11-14x22:13:20Z",
        "2023-1114T22:13:20Z",
        "2023-11-14T22:13:20+99:00",
        "2023-11-14T22:13:20 Europe/Berlin",
        "14.11.2023 22:13:20",
        "1969-12-31T23:59:59Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "2023-11-14T22:13:20\ud800",
        ["2023"],
        {"s": 1},
    ],
)
def test_time_that_cannot_be_read_is_bad(published: object) -> None:
    """Anything that is no moment from 1970 to 5138 is refused as bad_time."""
    with pytest.raises(DecodeError) as refusal:
        parse_time(published)
    assert refusal.value.reason == "bad_time"


def test_time_without_a_zone_is_utc_wherever_we_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The local time zone of the machine changes nothing."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        assert parse_time("2023-11-14T22:13:20") == 1_700_000_000.0
    time.tzset()


def test_time_units_meet_without_a_gap() -> None:
    """Just above each bound the next unit begins, and nothing lies beyond the latest time."""
    for unit in (1e3, 1e6, 1e9):
        assert parse_time(LATEST_TIME_S * unit) == LATEST_TIME_S
        assert parse_time(LATEST_TIME_S * unit / 1e3 + unit) == pytest.approx(1e8, rel=1e-3)
    with pytest.raises(DecodeError, match="bad_time"):
        parse_time(LATEST_TIME_S * 1.001e9)


# The sequence number.


@pytest.mark.parametrize(
    ("published", "sequence"),
    [
        (0, 0),
        (7, 7),
        (7.0, 7),
        (1e3, 1000),
        (-0.0, 0),
        (2**53, 2**53),
        (2.0**53, 2**53),
        ("7", 7),
        (" 0007 ", 7),
        ("9007199254740992", 2**53),
    ],
)
def test_sequence_number_in_every_known_form_is_read(published: object, sequence: int) -> None:
    """Whole numbers, as number or text of digits, give an int."""
    found = parse_sequence(published)
    assert found == sequence
    assert type(found) is int


@pytest.mark.parametrize(
    "published",
    [
        *(True, False, -1, 0.5, -1e300, 1e300, math.nan, math.inf, 2**53 + 1, 10**400),
        *("", " ", "-1", "+1", "1.0", "1e3", "0x10", "1_000", "seven", "9" * 20, "0" * 33),
        *("9007199254740993", "\u0661", "²", "1\ud800", [1], {"n": 1}, []),
    ],
)
def test_sequence_number_that_cannot_be_read_is_bad(published: object) -> None:
    """Anything that is no whole number from 0 to 2**53 is refused as bad_sequence."""
    with pytest.raises(DecodeError) as refusal:
        parse_sequence(published)
    assert refusal.value.reason == "bad_sequence"


def test_json_sequence_and_time_are_no_fields() -> None:
    """What places a reading is not part of it, wherever it stands and whatever else its object holds."""
    payload = b'{"meta":{"n":5,"ts":1700000000,"rssi":-70},"a":1}'
    assert one(payload, time="meta.ts", sequence="meta.n") == Sample({"meta.rssi": -70, "a": 1}, 1.7e9, {}, 5)
    assert one(b'{"meta.n":"5","n*":2}', sequence="meta.n") == Sample({"n*": 2}, None, {}, 5)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b'{"a":1}', "missing_sequence"),
        (b'{"a":1,"n":null}', "missing_sequence"),
        (b'{"a":1,"n":-1}', "bad_sequence"),
        (b'{"a":1,"n":{"n":1}}', "bad_sequence"),
        (b'{"n":1}', "no_numeric_field"),
        (b'[{"a":1,"n":1},{"a":2}]', "missing_sequence"),
    ],
)
def test_json_without_a_sound_sequence_number_is_refused(payload: bytes, expected: str) -> None:
    """A source that names a sequence number takes no reading without one."""
    assert reason(payload, sequence="n") == expected


def test_scalar_with_a_sequence_number_is_refused_in_a_sentence() -> None:
    """A plain number has no room for a sequence number, and the options say so."""
    with pytest.raises(ValueError, match="carries no sequence number"):
        decoder("scalar", sequence="n")


def test_json_time_is_taken_out_of_the_values() -> None:
    """The named event time becomes the time of the sample and no field."""
    assert one(b'{"ts":1700000000,"a":1}', time="ts") == Sample({"a": 1}, 1.7e9, {})
    assert one(b'{"ts":"2023-11-14T22:13:20Z","a":1}', time="ts") == Sample({"a": 1}, 1.7e9, {})


@pytest.mark.parametrize(
    "payload",
    [
        b'{"m":{"ts":1700000000},"a":1}',
        b'{"m.ts":1700000000,"a":1}',
        b'{"m.ts":1700000000,"m":{"ts":5},"a":1}',
    ],
)
def test_json_time_is_found_by_its_dotted_path(payload: bytes) -> None:
    """The path leads through objects; a key with the dots in its own name goes first."""
    assert one(payload, time="m.ts") == Sample({"a": 1}, 1.7e9, {})


def test_json_time_is_found_in_an_array() -> None:
    """A number in the path counts the elements of an array."""
    assert one(b'{"x":[{"ts":1},{"ts":1700000000}],"a":1}', time="x.1.ts").time_s == 1.7e9


def test_json_time_with_pattern_characters_is_taken_by_name() -> None:
    """Characters that mean something in a pattern mean nothing in a time path."""
    assert one(b'{"t[0]*":1700000000,"t0":1}', time="t[0]*") == Sample({"t0": 1}, 1.7e9, {})


@pytest.mark.parametrize("path", ["ts", "m.ts", "x.9.ts", "x.one", "a.b"])
def test_json_time_that_is_not_there_is_missing(path: str) -> None:
    """A path that leads nowhere, or to null, is missing_time."""
    assert reason(b'{"ts":null,"m":{"t":1},"x":[{"ts":1}],"a":1}', time=path) == "missing_time"


def test_json_samples_have_their_own_times() -> None:
    """Each sample of an array carries its own event time, and one bad time refuses the message."""
    samples = decoder(time="ts")(b'[{"ts":5,"a":1},{"ts":6,"a":2}]')
    assert [sample.time_s for sample in samples] == [5.0, 6.0]
    assert reason(b'[{"ts":5,"a":1},{"ts":"soon","a":2}]', time="ts") == "bad_time"
    assert reason(b'[{"ts":5,"a":1},{"a":2}]', time="ts") == "missing_time"


# The decoder scalar.


@pytest.mark.parametrize(
    ("payload", "value"),
    [
        (b"76.2", 76.2),
        (b" 21.5 \r\n", 21.5),
        (b"-0.5", -0.5),
        (b"+7", 7.0),
        (b".5", 0.5),
        (b"5.", 5.0),
        (b"1e3", 1000.0),
        (b"2.5E-3", 0.0025),
        (b"21,5", 21.5),
        (b"-21,50", -21.5),
        (b"0,125", 0.125),
        (b"1234,567", 1234.567),
        (b"1,2345", 1.2345),
        ("21.5 °C".encode(), 21.5),
        ("21,5 °C".encode(), 21.5),
        ("21.5°C".encode(), 21.5),
        ("21.5\u00a0µg/m³".encode(), 21.5),
        (b"55%", 55.0),
        (b"55 %", 55.0),
        (b"12 kWh", 12.0),
        (b"9.81 m/s^2", 9.81),
        (b"1e15", 1e15),
    ],
)
def test_scalar_number_is_read(payload: bytes, value: float) -> None:
    """Plain numbers, decimal commas and short units give one value."""
    assert decoder("scalar")(payload) == [Sample({"value": value}, None, {})]


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"ON", "not_number"),
        (b"true", "not_number"),
        (b"nan", "not_number"),
        (b"inf", "not_number"),
        (b"unknown", "not_number"),
        (b"0x1F", "not_number"),
        (b"1_000", "not_number"),
        (b"1,234", "not_number"),
        (b"-12,345", "not_number"),
        (b"1.234,5", "not_number"),
        (b"1,2,3", "not_number"),
        (b"12:30", "not_number"),
        (b"21.5C", "not_number"),
        (b"21.5 degrees in the hall", "not_number"),
        (b"1 2", "not_number"),
        (b'{"a":1}', "not_number"),
        ("٢١".encode(), "not_number"),
        (b"1" * (MAX_SCALAR_CHARS + 1), "not_number"),
        (b"", "empty"),
        (b" \n", "empty"),
        (b"21.5 \xb0C", "not_text"),
        (b"1e400", "out_of_range"),
        (b"-1e16", "out_of_range"),
    ],
)
def test_scalar_that_is_no_number_is_refused_with_its_reason(payload: bytes, expected: str) -> None:
    """Words, ambiguous separators and foreign digits are refused, each with its bounded reason."""
    assert reason(payload, "scalar") == expected


def test_scalar_field_follows_the_options() -> None:
    """Rename names the field, and options that leave no field refuse every number."""
    assert decoder("scalar", rename={"value": "power"})(b"5") == [Sample({"power": 5.0}, None, {})]
    assert reason(b"5", "scalar", exclude=("value",)) == "no_numeric_field"


def test_scalar_with_an_event_time_is_a_mistake_found_at_start() -> None:
    """A plain number cannot carry a time, so a source that names one is refused when it is built."""
    with pytest.raises(ValueError, match="no event time"):
        decoder("scalar", time="ts")
