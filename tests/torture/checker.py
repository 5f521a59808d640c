"""The history checker: what was sent, what a tortured daemon made of it, and what it should have made.

    resolve(truth, counted)                 lost, double, out of order; the readings that should have counted
    compare(tortured, reference, heard)     memory, scores, alerts

Every difference becomes a finding under the promise it breaks. A checker that cannot fail proves nothing:
tests/test_torture_checker.py breaks a history in every way named here.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torture.outcome import Counted
from torture.truth import DUMB, START_S, mode_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torture.outcome import Outcome
    from torture.truth import Truth

#: Promise P3. Numbers far from 1 (inverse covariances) are compared relative to their size.
TOLERANCE = 1e-5
#: Alert payloads round to four digits; a rounding that falls the other way is one unit of the last.
ROUNDED = 1.01e-4
#: What a device remembers of refused readings, which a run without faults never had.
OF_REFUSALS = frozenset({"lower", "lower_last", "lower_s"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken promise."""

    promise: str  # "P1" .. "P5"
    device: str
    what: str

    def __str__(self) -> str:
        return f"{self.promise} {self.device}: {self.what}"


@dataclass(slots=True)
class Verdict:
    """What a run is judged as."""

    readings: int = 0  # acknowledged to the publisher
    lost: int = 0
    double: int = 0
    inverted: int = 0  # counted behind a later one of the same device
    broker_lost: int = 0  # taken by a broker that died before we acknowledged them
    worst: float = 0.0  # difference in memory or score
    alerts: int = 0  # events of the reference
    alert_differences: int = 0
    findings: list[Finding] = field(default_factory=list)

    def add(self, promise: str, device: str, what: str) -> None:
        """Note a broken promise."""
        self.findings.append(Finding(promise, device, what))


def resolve(
    truth: Truth,
    counted: Mapping[str, Counted],
    verdict: Verdict,
    broker_lost: Mapping[str, set[int]] | None = None,
) -> dict[str, Counted]:
    """Hold what was counted against what was sent; returns the readings that should have been counted.

    `broker_lost`: readings by device that a broker took and lost before it delivered them.
    """
    return {
        name: _resolve(truth, name, counted[name], verdict, (broker_lost or {}).get(name, set()))
        for name in truth.names
    }


def _resolve(truth: Truth, name: str, rows: Counted, verdict: Verdict, broker_lost: set[int]) -> Counted:
    copies = truth.copies(name)
    values = truth.fleet.rows(name, len(copies))
    number = {row.tobytes(): n for n, row in enumerate(values)}
    order = [number.get(np.ascontiguousarray(row).tobytes(), -1) for row in rows.values]
    if -1 in order:
        verdict.add("P2", name, f"row {order.index(-1)} of the journal was never sent")
    times = np.bincount([n for n in order if n >= 0], minlength=len(copies))
    newest = -1
    for at, n in enumerate(order):
        if 0 <= n < newest and copies[n] == 1:
            verdict.inverted += 1
            verdict.add("P2", name, f"reading {n} was counted behind reading {newest}, as row {at}")
        newest = max(newest, n)
    should = []
    for n, acked in enumerate(truth.acked(name)):
        least = int(acked and n not in broker_lost)
        most = copies[n] if mode_of(name) in DUMB else 1
        verdict.readings += acked
        if times[n] < least:
            verdict.lost += 1
            verdict.add("P1", name, f"reading {n} was acknowledged and is not in the journal")
        elif times[n] > most:
            verdict.double += int(times[n] - most)
            verdict.add("P2", name, f"reading {n} was counted {times[n]} times")
        should += [n] * int(np.clip(times[n], least, most))
    return _should(name, values, order, should, rows)


def _should(name: str, values: np.ndarray, order: list[int], should: list[int], rows: Counted) -> Counted:
    """The readings `should` as rows: event times from the truth, arrival times and flags as journalled."""
    if sorted(order) == should:
        should = order  # nothing lost or double: repeats of dumb sensors stay where they came
    found: dict[int, deque[int]] = {}  # reading -> its rows in the journal
    for at, n in enumerate(order):
        found.setdefault(n, deque()).append(at)
    time_s, received_s = np.full(len(should), START_S), np.full(len(should), START_S)
    flags = np.zeros(len(should), np.int64)
    for k, n in enumerate(should):
        if row := found.get(n):
            at = row.popleft()
            flags[k], time_s[k], received_s[k] = rows.flags[at], rows.time_s[at], rows.received_s[at]
        elif k:
            time_s[k], received_s[k] = time_s[k - 1], received_s[k - 1]
        if mode_of(name) == "ts":
            time_s[k] = START_S + n
    return Counted(time_s, received_s, values[should], np.full(len(should), np.nan), flags)


def compare(tortured: Outcome, reference: Outcome, heard: Iterable[bytes], verdict: Verdict) -> None:
    """Hold a tortured run against the reference."""
    for name, expected in reference.counted.items():
        _compare_scores(name, tortured.counted[name], expected, verdict)
    for name, row in reference.memory.items():
        _compare_memory(name, tortured.memory.get(name), row, verdict)
        _compare_known(name, tortured.known.get(name, {}), reference.known[name], verdict)
    for name in tortured.memory.keys() - reference.memory.keys():
        verdict.add("P3", name, "is remembered and should not be known")
    _compare_alert_rows(tortured.alerts, reference.alerts, verdict)
    _compare_events(heard, reference.events, verdict)


def _compare_scores(name: str, found: Counted, expected: Counted, verdict: Verdict) -> None:
    if len(found) != len(expected):
        return  # a lost or double reading, told as such
    if not np.array_equal(found.time_s, expected.time_s):
        at = int(np.flatnonzero(found.time_s != expected.time_s)[0])
        verdict.add("P3", name, f"row {at} has time {found.time_s[at]}, not {expected.time_s[at]}")
    worst, at = _difference(found.score, expected.score)
    verdict.worst = max(verdict.worst, worst)
    if worst > TOLERANCE:
        verdict.add(
            "P3",
            name,
            f"row {at} scored {found.score[at]:.6f}, not {expected.score[at]:.6f}: first or worst of all",
        )
    if not np.array_equal(found.flags, expected.flags):
        at = int(np.flatnonzero(found.flags != expected.flags)[0])
        verdict.add("P3", name, f"row {at} has flags {found.flags[at]}, not {expected.flags[at]}")


def _compare_memory(
    name: str, found: Mapping[str, np.ndarray] | None, expected: Mapping[str, np.ndarray], verdict: Verdict
) -> None:
    if found is None:
        verdict.add("P3", name, "is not remembered at all")
        return
    if found.keys() != expected.keys():
        verdict.add(
            "P3", name, "is judged by another side: model instead of baseline, or the other way round"
        )
        return
    for column, row in expected.items():
        worst, _ = _difference(found[column], row)
        verdict.worst = max(verdict.worst, worst)
        if worst > TOLERANCE:
            verdict.add("P3", name, f"its {column} is off by {worst:.3g}")


def _difference(found: np.ndarray, expected: np.ndarray) -> tuple[float, int]:
    """Largest difference, relative where numbers are above 1, and where it is; NaN equals only NaN."""
    a, b = np.asarray(found, np.float64).ravel(), np.asarray(expected, np.float64).ravel()
    if not len(a):
        return 0.0, 0
    apart = np.abs(a - b) / np.maximum(1.0, np.abs(b))
    apart = np.where(np.isnan(a) & np.isnan(b), 0.0, np.where(np.isnan(apart), np.inf, apart))
    at = int(np.argmax(apart))
    return float(apart[at]), at


def _compare_known(
    name: str, found: Mapping[str, Any], expected: Mapping[str, Any], verdict: Verdict
) -> None:
    for key, value in expected.items():
        if key not in OF_REFUSALS and key in found and found[key] != value:
            verdict.add("P3", name, f"its {key} is {found[key]!r}, not {value!r}")


def _compare_alert_rows(
    found: Mapping[str, Mapping[str, Any]], expected: Mapping[str, Mapping[str, Any]], verdict: Verdict
) -> None:
    """The table of alerts: the same ids, and the same newest word on each."""
    for key in expected.keys() - found.keys():
        verdict.alert_differences += 1
        verdict.add("P3", expected[key]["device"], f"alert {key} was never decided")
    for key in found.keys() - expected.keys():
        verdict.alert_differences += 1
        verdict.add("P3", found[key]["device"], f"alert {key} should not have been decided")
    for key in found.keys() & expected.keys():
        differing = _differing(found[key], expected[key])
        if differing:
            verdict.alert_differences += 1
            verdict.add("P3", found[key]["device"], f"the newest word on alert {key} differs: {differing}")


def _compare_events(heard: Iterable[bytes], expected: Sequence[Mapping[str, Any]], verdict: Verdict) -> None:
    """What was told: each event at least once, a repetition only byte for byte, and nothing else."""
    verdict.alerts = len(expected)
    told: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for payload in set(heard):
        event = json.loads(payload)
        told.setdefault(_key(event), []).append(event)
    wanted: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for event in expected:  # two readings of one moment may both be news
        wanted.setdefault(_key(event), []).append(event)
    for key in wanted.keys() | told.keys():
        device, what = (wanted.get(key) or told[key])[0]["device"], f"alert {key[0]} {key[1]} at {key[2]}"
        missing, strange = _unmatched(wanted.get(key, []), told.get(key, []))
        verdict.alert_differences += max(len(missing), len(strange))
        for event, other in zip(missing, strange, strict=False):
            verdict.add("P4", device, f"{what} was told otherwise: {_differing(other, event)}")
        if len(missing) > len(strange):
            verdict.add("P4", device, f"{what} was never told")
        elif len(strange) > len(missing):
            verdict.add("P4", device, f"{what} was told with content that nothing explains")


def _unmatched(
    wanted: Sequence[Mapping[str, Any]], told: Sequence[Mapping[str, Any]]
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The events that were never told, and what was told and is none of them."""
    missing, strange = list(wanted), []
    for event in told:
        found = next((other for other in missing if not _differing(event, other)), None)
        if found is None:
            strange.append(event)
        else:
            missing.remove(found)
    return missing, strange


def _key(event: Mapping[str, Any]) -> tuple[str, str, str]:
    return str(event["id"]), str(event["state"]), str(event["time"])


def _differing(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Keys of an alert that are not the same. The sentence is made of the others, and rounds its own way."""
    return sorted(
        key
        for key in found.keys() | expected.keys()
        if key != "message" and not _alike(found.get(key), expected.get(key))
    )


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= ROUNDED * max(1.0, abs(b))
    return bool(a == b)


def unaccounted(page: str) -> str:
    """What is wrong with promise P5 on the metrics page of a daemon at rest; empty when nothing is."""
    series = {}
    for line in page.splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("gruard_readings"):
            series[name] = float(value)
    results = {name: value for name, value in series.items() if name.startswith("gruard_readings_total{")}
    received = series.get("gruard_readings_received_total", 0.0)
    if results and received == sum(results.values()):
        return ""
    return f"received {received:.0f}, and accounted for are {results}"
