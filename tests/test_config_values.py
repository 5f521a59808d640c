"""gruard.daemon.config_values: the small languages inside configuration values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gruard.daemon.config_values import (
    check_host,
    derive_names,
    parse_budget,
    parse_duration,
    parse_listen,
    reads_own_output,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("6h", 21_600), ("7d", 604_800), ("0.5h", 1800), ("0s", 0)],
)
def test_parse_duration_gives_seconds(text: str, seconds: float) -> None:
    """A number and one unit, as seconds."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "value", ["", "6", "6 h", "h", "-1h", "1h30m", "1e3s", "٣s", "6H", "6h\n", "9" * 10 + "s", 6, None, True]
)
def test_parse_duration_refuses_what_is_no_duration(value: object) -> None:
    """Anything else is refused, bare numbers too: their unit would be a guess."""
    with pytest.raises(ValueError, match="must be a duration such as"):
        parse_duration(value)


def test_parse_duration_keeps_both_bounds() -> None:
    """The bounds themselves are allowed, what lies beyond is not."""
    assert parse_duration("10s", 10) == 10
    assert parse_duration("366d") == 366 * 86_400
    for text in ("9.9s", "366.1d"):
        with pytest.raises(ValueError, match='from "10s" to "366d"'):
            parse_duration(text, 10)


@pytest.mark.parametrize(
    ("text", "period_s"),
    [
        ("1 per device per hour", 3600),
        ("1 per device per day", 86_400),
        ("2.5 per device per week", 604_800 / 2.5),
        ("1 per device per month", 2_592_000),
    ],
)
def test_parse_budget_gives_alarms_per_second(text: str, period_s: float) -> None:
    """A budget is a rate: its inverse is the mean time between two false alarms of a device."""
    assert 1 / parse_budget(text).per_second == pytest.approx(period_s)
    assert parse_budget(text).per_reading is None


@pytest.mark.parametrize(
    ("text", "readings"),
    [
        ("1 per device per 10000 readings", 10_000),
        ("10 per device per 10000 readings", 1000),
        ("0.5 per device per 200 readings", 400),
        ("1 per device per 1 readings", 1),
    ],
)
def test_parse_budget_per_readings_gives_alarms_per_reading(text: str, readings: float) -> None:
    """A budget that is counted in readings does not depend on how often a device reports."""
    budget = parse_budget(text)
    assert budget.rate(1.0) == budget.rate(60.0) == pytest.approx(1 / readings)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "1 per week",
        "1 per device per year",
        "1 per device per 0 readings",
        "1 per device per 010 readings",
        "1 per device per 1.5 readings",
        "1 per device per readings",
        "1 per device per 10000 reading",
        "1 per device per 10000",
        "1 per device per 9999999999 readings",
        "-1 per device per week",
        "1e3 per device per week",
        "1 per device per week\n",
        1,
        None,
    ],
)
def test_parse_budget_refuses_what_is_no_budget(value: object) -> None:
    """Anything else is refused with the forms that are known."""
    with pytest.raises(ValueError, match='must read "NUMBER per device per hour"'):
        parse_budget(value)


@pytest.mark.parametrize("text", ["0 per device per week", "0.0 per device per 100 readings"])
def test_parse_budget_of_nothing_is_refused(text: str) -> None:
    """No alarms at all is no detector."""
    with pytest.raises(ValueError, match="more than 0 alarms"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9109", ("127.0.0.1", 9109)),
        ("[::1]:0", ("::1", 0)),
        ("gateway.local:65535", ("gateway.local", 65_535)),
    ],
)
def test_parse_listen_splits_host_and_port(text: str, address: tuple[str, int]) -> None:
    """IPv6 addresses lose their brackets; port 0 is allowed."""
    assert parse_listen(text) == address


@pytest.mark.parametrize("value", ["::1:9109", "9109", "localhost", "host:65536", "host:-1", "a b:1", 9109])
def test_parse_listen_refuses_what_is_no_address(value: object) -> None:
    """Without host or port, or with a port that does not exist, there is nothing to listen on."""
    with pytest.raises(ValueError, match="must be HOST:PORT"):
        parse_listen(value)


@pytest.mark.parametrize(
    "host", ["broker", "broker.local", "192.168.1.1", "::1", "fe80::1%eth0", "käse.example"]
)
def test_check_host_accepts_names_and_addresses(host: str) -> None:
    """Names, IPv4 and IPv6 with a zone pass as they are."""
    assert check_host(host) == host


@pytest.mark.parametrize("host", ["", "a b", "user@broker", "broker/path", "broker\n", "x" * 254])
def test_check_host_refuses_everything_else(host: str) -> None:
    """Spaces, user names, paths and line breaks are no part of a host."""
    with pytest.raises(ValueError, match="must be a host name or address"):
        check_host(host)


@pytest.mark.parametrize(
    ("topic_filter", "base", "loops"),
    [
        ("gruard/alerts/+", "gruard", True),
        ("gruard/#", "gruard", True),
        ("#", "gruard", True),
        ("+/+", "gruard", True),
        ("+/state/+/x", "gruard", True),
        ("gruard/cmd/#", "gruard", True),
        ("gruard/info", "gruard", True),
        ("plant/#", "plant/gruard", True),
        ("plant/+/status", "plant/gruard", True),
        ("+", "gruard", False),
        ("gruard/sensors/+", "gruard", False),
        ("sensors/#", "gruard", False),
        ("+/+", "plant/gruard", False),
        ("gruard2/#", "gruard", False),
        ("gruard/info/+", "gruard", False),
    ],
)
def test_reads_own_output_knows_every_topic_of_the_daemon(
    topic_filter: str, base: str, loops: object
) -> None:
    """A subscription is refused exactly when one of our own topics would come back through it."""
    assert reads_own_output(topic_filter, base) is loops


def fits(topic_filter: list[str], topic: list[str]) -> bool:
    """The matching rule of MQTT 3.1.1 section 4.7, written down plainly as a second opinion."""
    for place, level in enumerate(topic_filter):
        if level == "#":
            return True
        if place == len(topic) or level not in {"+", topic[place]}:
            return False
    return len(topic_filter) == len(topic)


LEVELS = st.sampled_from(["+", "a", "b", "alerts", "status"])


@given(st.lists(LEVELS, min_size=1, max_size=4), st.sampled_from([[], ["#"]]), st.sampled_from(["a", "a/b"]))
def test_reads_own_output_agrees_with_matching_topic_by_topic(
    levels: list[str], rest: list[str], base: str
) -> None:
    """The answer is that of trying the filter on the topics themselves, with every device depth up to 4."""
    topic_filter = levels + rest
    choices = ["a", "b", "alerts", "status", "device"]
    deep = [[*base.split("/"), kind, *more] for kind in ("alerts", "state", "cmd") for more in tails(choices)]
    flat = [[*base.split("/"), kind] for kind in ("status", "info", "alerts", "state", "cmd")]
    expected = any(fits(topic_filter, topic) for topic in flat + deep)
    assert reads_own_output("/".join(topic_filter), base) is expected


def tails(choices: list[str]) -> list[list[str]]:
    one = [[choice] for choice in choices]
    two = [[first, second] for first in choices for second in choices]
    return one + two + [[*pair, third] for pair in two for third in choices]


@given(st.lists(st.text(max_size=6), max_size=8), st.sets(st.sampled_from(["a", "a-2", "source"])))
def test_derive_names_are_unique_and_allowed(topics: list[str], taken: set[str]) -> None:
    """Whatever the topics are, each gets a name of its own that no named source has."""
    names = derive_names(topics, taken)
    assert len(set(names)) == len(topics)
    assert not set(names) & taken
    assert all(0 < len(name) <= 64 and set(name) <= set(ALLOWED) for name in names)


ALLOWED = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
