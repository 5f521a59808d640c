"""Resident memory of the running scorer by number of devices, after the first model went live.

    python bench/bench_memory.py [DEVICES ...]

Starts mosquitto and the real daemon on loopback ports, publishes 420 readings of 8 fields for each device,
one a second, waits for the training round, and reads VmRSS and VmHWM from /proc. Bounded: eight minutes.
Fed faster than real time, messages that wait add up to 10 MB more (limits.inbox_readings).
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from support_daemon import Daemon
from support_engine import plant_rows
from support_mqtt import Mosquitto, wait_until

from gruard.daemon.edges.broker import Publisher

FIELDS, READINGS, START_S = 8, 420, 1_600_000_000.0
LIMIT_MB = 80


def status_mb(pid: int) -> dict[str, float]:
    """VmRSS and VmHWM in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {
        line.split(":")[0]: int(line.split()[1]) / 1024
        for line in lines
        if line.startswith(("VmRSS", "VmHWM"))
    }


def measure(devices: int, folder: Path) -> dict[str, float]:
    """One daemon with so many devices, from empty to a live model."""
    broker = Mosquitto(folder, ["max_queued_messages 0"])
    series = [plant_rows(READINGS, seed=n, fields=FIELDS) for n in range(20)]
    with broker, Daemon(folder, broker.port) as daemon:
        empty = status_mb(daemon.pid)["VmRSS"]
        began = time.monotonic()
        with Publisher("127.0.0.1", broker.port, "bench") as publisher:
            for t in range(READINGS):
                time.sleep(max(0.0, began + t - time.monotonic()))
                for n in range(devices):
                    row = series[n % 20][t]
                    body = {"ts": START_S + t, **{f"f{k}": float(np.float32(v)) for k, v in enumerate(row)}}
                    publisher.publish(f"plant/device-{n:05}", json.dumps(body).encode(), qos=1)
            publisher.wait_all(300)
        total = devices * READINGS
        if not wait_until(lambda: daemon.metric('gruard_readings_total{result="scored"}') == total, 300):
            raise SystemExit(f"only {daemon.accounted():.0f} of {total} readings came through")
        wait_until(lambda: daemon.metric('gruard_retrain_total{result="promoted"}') >= 1, 120)
        seconds = time.monotonic() - began
        ready = daemon.metric('gruard_devices{state="ready"}')
        return {
            "devices": devices,
            "empty": empty,
            **status_mb(daemon.pid),
            "ready": ready,
            "seconds": seconds,
        }


def main() -> None:
    """Print a table."""
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}")
    print("devices  ready  empty MB  resident MB  peak MB  seconds  resident <= 80 MB")
    for devices in [int(a) for a in sys.argv[1:]] or [1000]:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o777)
            m = measure(devices, Path(folder))
        good = "yes" if m["VmRSS"] <= LIMIT_MB else "no"
        print(
            f"{m['devices']:7.0f} {m['ready']:6.0f} {m['empty']:9.1f} {m['VmRSS']:12.1f} {m['VmHWM']:8.1f}"
            f" {m['seconds']:8.1f}  {good}"
        )


if __name__ == "__main__":
    main()
