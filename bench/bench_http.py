"""What attacks on the HTTP port do to scoring: the slowest hundredth of batches and of readings, beside calm.

    python bench/bench_http.py [--seconds 15] [--rate 500] [--keep]

mosquitto and the real daemon; readings at a steady rate all the time, and somebody who scrapes once a second.
Each attack of tests/test_torture_http.py takes its turn, from a process of its own. Before them come a calm
turn and, because attackers need a processor too, one beside a process that only burns one (`busy`): what an
attack costs beyond that is the daemon's own doing. The bar is 1.2 times the 99th percentile of `busy` for a
batch, and every scrape answered.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is imported

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from keeping import RESULTS, keep, rounded
from support_daemon import Daemon
from support_mqtt import Mosquitto, wait_until
from test_torture_http import ATTACKS, Attack

from gruard.daemon.edges.broker import Publisher

if TYPE_CHECKING:
    from collections.abc import Mapping

DEVICES = 40
WARM = 3100 * DEVICES  # readings until every device was fitted for the last time
BAR = 1.2
STAGES = {"batch": "gruard_scoring_duration_seconds", "reading": "gruard_end_to_end_latency_seconds"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="of each turn")
    parser.add_argument("--rate", type=float, default=500.0, help="readings a second")
    parser.add_argument("--keep", action="store_true", help="keep the figures in results/http.json")
    parser.add_argument("--attack", nargs=2, metavar=("NAME", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attack:
        attack(options.attack[0], int(options.attack[1]), options.seconds)
        return
    figures = measure(options.seconds, options.rate)
    for name, found in figures.items():
        print(f"{name:28}", *(f"{key} {value}" for key, value in found.items()))
    worst = max(found["batch_ratio"] for found in figures.values() if "batch_ratio" in found)
    failed = sum(found["unanswered"] for found in figures.values())
    print(f"worst batch p99 {worst:.2f} of `busy` (bar {BAR}), {failed} scrapes unanswered")
    if options.keep:
        keep(RESULTS / "http.json", figures)
    if worst > BAR or failed:
        sys.exit(1)


def attack(name: str, port: int, seconds: float) -> None:
    """What the attacking process does."""
    end_s = time.monotonic() + seconds
    if name == "busy":
        while time.monotonic() < end_s:
            pass
    elif name == "calm":
        time.sleep(seconds)
    else:
        with Attack(port, *ATTACKS[name]):
            time.sleep(seconds)


def measure(seconds: float, rate: float) -> dict[str, dict[str, Any]]:
    """Turn -> milliseconds at the 99th percentile of each stage, and how many scrapes failed."""
    with tempfile.TemporaryDirectory(prefix="gruard-bench-") as name:
        folder = Path(name)
        with (
            Mosquitto(folder, ["max_queued_messages 0"]) as broker,
            Daemon(folder, broker.port, warmup=100_000) as daemon,
            Publisher("127.0.0.1", broker.port, "bench") as publisher,
        ):
            for number in range(WARM):
                publish(publisher, number)
            publisher.wait_all(300)
            if not wait_until(lambda: daemon.metric("gruard_readings_received_total") == WARM, 300):
                sys.exit("the daemon does not take what is sent")
            over = threading.Event()
            sender = threading.Thread(target=send, args=(publisher, rate, over))
            sender.start()
            try:
                figures = {turn: one_turn(daemon, turn, seconds) for turn in ("calm", "busy", *ATTACKS)}
            finally:
                over.set()
                sender.join()
    for found in figures.values():
        for stage in STAGES:
            found[f"{stage}_ratio"] = rounded(found[f"{stage}_ms"] / figures["busy"][f"{stage}_ms"], 3)
    return figures


def publish(publisher: Publisher, number: int) -> None:
    body = {f"f{k}": (number * (k + 1)) % 17 for k in range(4)}
    publisher.publish(f"raw/device-{number % DEVICES}", json.dumps(body).encode(), qos=1)


def send(publisher: Publisher, rate: float, over: threading.Event) -> None:
    number, began_s = WARM, time.monotonic()
    while not over.wait(0.01):
        while number - WARM < rate * (time.monotonic() - began_s):
            publish(publisher, number)
            number += 1


def one_turn(daemon: Daemon, turn: str, seconds: float) -> dict[str, Any]:
    command = [sys.executable, __file__, "--seconds", str(seconds), "--attack", turn, str(daemon.http_port)]
    before, unanswered, scrapes = page(daemon), 0, 0
    attacker = subprocess.Popen(command)
    while attacker.poll() is None:
        time.sleep(1.0)
        status, _ = daemon.get("/metrics")
        scrapes, unanswered = scrapes + 1, unanswered + (status != 200)
    after = page(daemon)
    found: dict[str, Any] = {
        f"{stage}_ms": rounded(1e3 * quantile(before, after, name, 0.99), 3) for stage, name in STAGES.items()
    }
    return found | {"scrapes": scrapes, "unanswered": unanswered}


def page(daemon: Daemon) -> dict[str, float]:
    """Series -> value; the page must be answered and be one that can be read."""
    status, text = daemon.get("/metrics")
    if status != 200:
        sys.exit(f"the daemon answers a scrape with {status}")
    rows = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {series: float(value) for series, _, value in rows}


def quantile(before: Mapping[str, float], after: Mapping[str, float], name: str, q: float) -> float:
    """A quantile of what a histogram has counted in between, straight between the bounds of its bucket."""
    counted = []
    for series, value in after.items():
        if series.startswith(f'{name}_bucket{{le="'):
            bound = float(series.split('"')[1].replace("+Inf", "inf"))
            counted.append((bound, value - before.get(series, 0.0)))
    counted.sort()
    wanted, low, below = q * counted[-1][1], 0.0, 0.0
    for bound, up_to in counted:
        if up_to >= wanted and up_to > below:
            return low + (bound - low) * (wanted - below) / (up_to - below) if bound < float("inf") else low
        low, below = bound, up_to
    raise AssertionError("nothing was counted")


if __name__ == "__main__":
    main()
