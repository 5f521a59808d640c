"""What one reading costs, and one fit: the whole score of a trained model, beside torch's GRU step alone.

    python bench/bench_scoring.py [--fields 8] [--seconds 20]

"one device" is `Detector.update`; a batch is `GroupScorer.score` of that many devices with a reading each,
in a run of slots and in a drawn order. The torch column is what the bare recurrent step of the same width
takes there: no scaling, no forecast, no evidence, no alarm. Turns are taken, and the lower decile is told. A
fit is CPU time, without the scoring, of one device with 400 readings and of a group of 50 with as many.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import TYPE_CHECKING

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is imported

import numpy as np
import torch
from bench_cells import lower_deciles, print_machine

from gruard.models import Detector, DetectorConfig
from gruard.models.detector import train_inline
from gruard.models.group import GroupScorer
from gruard.models.history import History

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

WARMUP = 400
BATCHES = (8, 64, 512)
FLEET = 50


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fields", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0, help="about how long the timing takes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print_machine()
    rows = readings(6000, options.fields)
    config = DetectorConfig()
    group, fit_s = trained(rows, 1, config)
    _, fleet_s = trained(rows, FLEET, config)
    print(f"fit, CPU seconds: one device {fit_s:.2f}, a group of {FLEET} {fleet_s:.2f}")
    print(f"state of one device: {group.row_bytes} bytes\n")
    print(f"{'':22} {'us a reading':>12} {'torch step':>11} {'ratio':>6}")
    per_row = options.seconds / (2 * len(BATCHES) + 1)
    tell("one device", 1, Updates(rows, config), torch_step(1, options.fields), per_row)
    fill(group, max(BATCHES))
    for batch in BATCHES:
        for name, slots in (("a run", np.arange(batch)), ("drawn", shuffled(batch))):
            call = Batches(group, slots, rows)
            tell(f"{batch} devices, {name}", batch, call, torch_step(batch, options.fields), per_row)


def tell(
    name: str, batch: int, ours: Callable[[], object], torchs: Callable[[], object], seconds: float
) -> None:
    mine, other = (s / batch * 1e6 for s in lower_deciles((ours, torchs), seconds))
    print(f"{name:22} {mine:12.2f} {other:11.2f} {mine / other:6.2f}")


def readings(rows: int, fields: int) -> NDArray[np.float64]:
    """Normal readings: a cycle with noise."""
    t = np.arange(rows)[:, None]
    noise = np.random.default_rng(0).standard_normal((rows, fields))
    return np.sin(2 * np.pi * t / 50 + np.arange(fields)) + 0.1 * noise


def trained(rows: NDArray[np.float64], devices: int, config: DetectorConfig) -> tuple[GroupScorer, float]:
    """A group with a model in charge of so many devices, and the CPU seconds that it took."""
    group = GroupScorer(rows.shape[1], config.budget)
    slots = np.array([group.add(WARMUP, float(WARMUP - 1)) for _ in range(devices)])
    histories = [
        History(np.arange(WARMUP, dtype=float), rows[n : n + WARMUP], np.ones(WARMUP, bool))
        for n in range(devices)
    ]
    train_inline(group, slots, histories, config)  # once for the imports
    start = time.process_time()
    train_inline(group, slots, histories, config)
    return group, time.process_time() - start


def fill(group: GroupScorer, devices: int) -> None:
    """Copies of the first device in every slot up to so many."""
    state = group.dump(0)
    while len(group) < devices:
        group.load(group.add(), state)


def shuffled(batch: int) -> NDArray[np.int64]:
    return np.random.default_rng(1).permutation(batch)


class Updates:
    """One reading after the other through a trained Detector."""

    def __init__(self, rows: NDArray[np.float64], config: DetectorConfig) -> None:
        self.rows, self.at = rows, 0
        self.detector = Detector(rows.shape[1], WARMUP, config)
        for _ in range(WARMUP + 1):
            self()

    def __call__(self) -> None:  # noqa: D102 -- what the class says
        self.detector.update(float(self.at), self.rows[self.at % len(self.rows)])
        self.at += 1


class Batches:
    """A reading of every device, second after second."""

    def __init__(self, group: GroupScorer, slots: NDArray[np.int64], rows: NDArray[np.float64]) -> None:
        self.group, self.slots, self.rows, self.at = group, slots, rows, WARMUP

    def __call__(self) -> None:  # noqa: D102 -- what the class says
        values = np.broadcast_to(self.rows[self.at % len(self.rows)], (len(self.slots), self.rows.shape[1]))
        self.group.score(self.slots, np.full(len(self.slots), float(self.at)), values)
        self.at += 1


def torch_step(batch: int, fields: int) -> Callable[[], object]:
    cell = torch.nn.GRUCell(2 * fields + 1, DetectorConfig().hidden).eval()
    x, h = torch.zeros(batch, 2 * fields + 1), torch.zeros(batch, DetectorConfig().hidden)

    def step() -> object:
        with torch.inference_mode():
            return cell(x, h)

    return step


if __name__ == "__main__":
    main()
