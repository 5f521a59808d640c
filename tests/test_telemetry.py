"""This machine's telemetry: rates between two looks, and what is left out."""

from __future__ import annotations

import math
import os
import re
import time

import psutil
import pytest

from gruard.daemon.demo.telemetry import (
    Counters,
    HostTelemetry,
    host_device,
    rates,
    read_counters,
    spare_bytes,
)


def test_rates_divide_growth_by_elapsed_time() -> None:
    """An amount that grew by 30 in 2 seconds is a rate of 15; gauges are those of the later look."""
    before = Counters(10.0, totals={"net_kb_s": 100.0}, gauges={"load1": 0.5})
    after = Counters(12.0, totals={"net_kb_s": 130.0}, gauges={"load1": 0.7})

    assert rates(before, after) == {"net_kb_s": 15.0, "load1": 0.7}


def test_rates_tell_the_busiest_core_from_all_cores() -> None:
    """One of two cores at full load is 50 percent overall and 100 percent of the busiest."""
    before = Counters(0.0, cores=((5.0, 10.0), (1.0, 10.0)))
    after = Counters(1.0, cores=((6.0, 11.0), (1.0, 11.0)))

    assert rates(before, after) == {"cpu_percent": 50.0, "cpu_busiest_percent": 100.0}


def test_rates_leave_out_a_counter_that_started_over() -> None:
    """A counter that fell says nothing about the interval: it is absent, not 0 and not negative."""
    before = Counters(0.0, totals={"net_kb_s": 100.0, "interrupts_per_s": 5.0})
    after = Counters(1.0, totals={"net_kb_s": 3.0, "interrupts_per_s": 9.0})

    assert rates(before, after) == {"interrupts_per_s": 4.0}


def test_rates_leave_out_what_only_one_look_has() -> None:
    """A counter that has just appeared has no rate yet, and one that went away has none any more."""
    before = Counters(0.0, totals={"gone": 1.0})
    after = Counters(1.0, totals={"new": 1.0})

    assert rates(before, after) == {}


def test_rates_say_nothing_without_elapsed_time() -> None:
    """Two looks at the same moment give gauges only; nothing is divided by zero."""
    look = Counters(3.0, cores=((1.0, 2.0),), totals={"net_kb_s": 1.0}, gauges={"load1": 0.1})

    assert rates(look, look) == {"load1": 0.1}


def test_rates_leave_out_cpu_when_cores_come_or_go() -> None:
    """With another number of cores the looks cannot be compared core by core."""
    before, after = Counters(0.0, cores=((1.0, 2.0),)), Counters(1.0, cores=((1.0, 2.0), (0.0, 0.0)))

    assert rates(before, after) == {}


def test_rates_keep_cpu_within_bounds_when_a_core_clock_steps_back() -> None:
    """Idle time that jumps back would give more than 100 percent; the share stays within 0..100."""
    fields = rates(Counters(0.0, cores=((1.0, 2.0),)), Counters(1.0, cores=((3.0, 3.0),)))

    assert fields == {"cpu_percent": 100.0, "cpu_busiest_percent": 100.0}


def test_read_counters_sees_this_machine() -> None:
    """The real machine has cores, memory and a load, and its totals do not fall."""
    first = read_counters()
    second = read_counters()

    assert len(first.cores) == psutil.cpu_count()
    assert 0 < first.gauges["memory_used_percent"] <= 100
    assert first.gauges["processes"] >= 1
    assert second.time_s >= first.time_s
    assert all(second.totals[name] >= total for name, total in first.totals.items())


@pytest.mark.parametrize(
    ("source", "failure"),
    [
        ("disk_io_counters", lambda: None),
        ("net_io_counters", PermissionError),
        ("cpu_stats", psutil.AccessDenied),
        ("virtual_memory", RuntimeError),
    ],
)
def test_read_counters_leaves_out_what_a_container_hides(
    monkeypatch: pytest.MonkeyPatch, source: str, failure: object
) -> None:
    """A source that answers None or refuses costs its own fields and nothing else."""

    def hidden() -> None:
        if isinstance(failure, type):
            raise failure

    everything = read_counters()
    monkeypatch.setattr(psutil, source, hidden)
    told = read_counters()

    missing = {*everything.totals, *everything.gauges} - {*told.totals, *told.gauges}
    assert 1 <= len(missing) <= 2
    assert told.cores
    assert "load1" in told.gauges


def test_telemetry_measures_real_work() -> None:
    """A busy interval of this process shows as busy percent of a core; all fields are finite."""
    telemetry = HostTelemetry()
    deadline = time.monotonic() + 0.4
    while time.monotonic() < deadline:
        sum(range(10_000))
    fields = telemetry.measure()

    assert fields["cpu_busiest_percent"] > 20
    assert all(math.isfinite(value) for value in fields.values())


def test_telemetry_measures_since_the_call_before() -> None:
    """Each reading has its own interval, so a busy moment shows once and in full."""
    looks = iter([Counters(float(t), totals={"net_kb_s": 100.0 * (t >= 2)}) for t in range(5)])
    telemetry = HostTelemetry(lambda: next(looks))

    assert [telemetry.measure()["net_kb_s"] for _ in range(4)] == [0.0, 100.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("hostname", "device"),
    [
        ("gateway-7.local", "gateway-7.local"),
        ("a/b+c#d e", "a-b-c-d-e"),
        ("---", "this-machine"),
        ("", "this-machine"),
    ],
)
def test_host_device_is_safe_as_a_topic_level(hostname: str, device: str) -> None:
    """Whatever a machine is called, its device name holds no wildcard, slash or space."""
    assert host_device(hostname) == device
    assert re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", host_device(os.uname().nodename))
    assert len(host_device("x" * 300)) == 64


def test_spare_bytes_leaves_the_machine_its_memory() -> None:
    """A burn may fill some memory, but never more than an eighth of what is free, nor over 2 GiB."""
    assert 0 < spare_bytes() <= min(1.05 * psutil.virtual_memory().available / 8, 2 * 1024**3)
