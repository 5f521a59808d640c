"""This machine's own live telemetry: counters from psutil, and rates between two looks at them.

`read_counters` touches the machine and the clock, `rates` is pure. What a machine or container does not
tell (no disks of its own, no permission, a counter that started over) is left out, never written as 0.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_MEBIBYTE = 1024.0 * 1024.0
_KIBIBYTE = 1024.0
_FOREIGN = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class Counters:
    """One look at the machine; `totals` only ever grow, `gauges` are readings of the moment."""

    time_s: float  # monotonic
    cores: tuple[tuple[float, float], ...] = ()  # per core: busy and total CPU seconds so far
    totals: Mapping[str, float] = field(default_factory=dict)  # name of the rate -> cumulative amount
    gauges: Mapping[str, float] = field(default_factory=dict)  # field -> value


def host_device(hostname: str) -> str:
    """Device name for this machine: its host name with foreign characters replaced; safe as a topic level."""
    return _FOREIGN.sub("-", hostname).strip("-.")[:64] or "this-machine"


def rates(before: Counters, after: Counters) -> dict[str, float]:
    """Fields between two looks: CPU shares in percent, amounts per second, and the later gauges.

    A field is left out where a counter is missing on either side or has started over.
    """
    fields = _cpu_percents(before, after) if len(before.cores) == len(after.cores) else {}
    elapsed_s = after.time_s - before.time_s
    if elapsed_s > 0:
        for name, total in after.totals.items():
            grown = total - before.totals.get(name, float("inf"))
            if grown >= 0:
                fields[name] = grown / elapsed_s
    return fields | dict(after.gauges)


def _cpu_percents(before: Counters, after: Counters) -> dict[str, float]:
    """Busy percent over all cores and of the busiest one; nothing where no core's clock has moved."""
    busy = [late[0] - early[0] for early, late in zip(before.cores, after.cores, strict=True)]
    total = [late[1] - early[1] for early, late in zip(before.cores, after.cores, strict=True)]
    if sum(total) <= 0:
        return {}
    shares = [100 * min(max(b / t, 0.0), 1.0) for b, t in zip(busy, total, strict=True) if t > 0]
    overall = 100 * min(max(sum(busy) / sum(total), 0.0), 1.0)
    return {"cpu_percent": overall, "cpu_busiest_percent": max(shares)}


class HostTelemetry:
    """Readings of this machine, one per call; rates are those since the call before.

    Intervals do not overlap: overlapping ones would make every reading predictable from the last.
    """

    def __init__(self, read: Callable[[], Counters] | None = None) -> None:
        self._read = read or read_counters
        self._last = self._read()

    def measure(self) -> dict[str, float]:
        """The machine's fields now."""
        before, self._last = self._last, self._read()
        return {name: round(value, 4) for name, value in rates(before, self._last).items()}


def read_counters() -> Counters:
    """Look at the machine once; what it does not tell is absent."""
    totals: dict[str, float] = {}
    gauges: dict[str, float] = {}
    for read in (_read_disk, _read_network, _read_kernel):
        totals |= _told(read)
    for read in (_read_memory, _read_load, _read_processes):
        gauges |= _told(read)
    return Counters(time.monotonic(), _read_cores(), totals, gauges)


def spare_bytes() -> int:
    """Memory that a short burn may fill: an eighth of what is free, a sixteenth of all, 2 GiB at most."""
    memory = psutil.virtual_memory()
    return int(min(memory.available // 8, memory.total // 16, 2 * 1024**3))


def _told(read: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What one source says, or nothing: psutil answers None or raises where a container hides a counter."""
    try:
        return read()
    except (OSError, RuntimeError, NotImplementedError, AttributeError, psutil.Error):
        return {}


def _read_cores() -> tuple[tuple[float, float], ...]:
    cores = []
    for spent in psutil.cpu_times(percpu=True):
        # guest time is inside user time already; waiting for a disk is not work
        total = sum(spent) - getattr(spent, "guest", 0.0) - getattr(spent, "guest_nice", 0.0)
        cores.append((total - spent.idle - getattr(spent, "iowait", 0.0), total))
    return tuple(cores)


def _read_disk() -> dict[str, float]:
    disks = psutil.disk_io_counters()
    return {
        "disk_read_mb_s": disks.read_bytes / _MEBIBYTE,
        "disk_write_mb_s": disks.write_bytes / _MEBIBYTE,
    }


def _read_network() -> dict[str, float]:
    network = psutil.net_io_counters()
    return {"net_kb_s": (network.bytes_sent + network.bytes_recv) / _KIBIBYTE}


def _read_kernel() -> dict[str, float]:
    kernel = psutil.cpu_stats()
    return {
        "context_switches_per_s": float(kernel.ctx_switches),
        "interrupts_per_s": float(kernel.interrupts),
    }


def _read_memory() -> dict[str, float]:
    return {"memory_used_percent": float(psutil.virtual_memory().percent)}


def _read_load() -> dict[str, float]:
    return {"load1": float(psutil.getloadavg()[0])}


def _read_processes() -> dict[str, float]:
    return {"processes": float(len(psutil.pids()))}
