"""One recurrent step of B devices: our numpy cell beside torch's own cell, on one core.

    python bench/bench_cells.py [--cell gru] [--seconds 30]

Both sides do the same work from the same weights: new state and readout, 8 inputs, 8 outputs, one layer.
Engines take turns, so that a busy machine disturbs both alike, and the lower decile of the wall time is
reported: the cost on a quiet machine. Compare only within one table.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is imported

import numpy as np
import torch
from torch import nn

from gruard.models.cells import CELLS, Network, NetworkConfig
from gruard.models.training.network import RecurrentForecaster

if TYPE_CHECKING:
    from collections.abc import Callable

BATCHES = (1, 8, 64, 512, 4096)
WIDTHS = (32, 64)
INPUTS = OUTPUTS = 8
FEWEST_TURNS = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cell", choices=CELLS, default="gru")
    parser.add_argument("--seconds", type=float, default=30.0, help="about how long the whole run takes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print_machine()
    per_row = options.seconds / (len(BATCHES) * len(WIDTHS) + 1)
    sgemm = matmul_flops(per_row)
    print(f"best float32 matrix product on this core: {sgemm / 1e9:.0f} GFLOP/s\n")
    heads = f"{'numpy us':>9} {'torch us':>9} {'ratio':>6} {'steps/s':>10} {'of sgemm':>9}"
    print(f"{options.cell:5} {'B':>5} {heads}")
    for hidden in WIDTHS:
        for batch in BATCHES:
            config = NetworkConfig(options.cell, INPUTS, hidden, 1, OUTPUTS)
            ours, theirs = lower_deciles(engines(config, batch), per_row)
            rate, share = batch / ours, batch * flops(config) / ours / sgemm
            times = f"{ours * 1e6:>9.1f} {theirs * 1e6:>9.1f} {theirs / ours:>6.2f}"
            print(f"H={hidden:<3} {batch:>5} {times} {rate:>10,.0f} {share:>9.0%}")
    print(
        "\nratio: torch's time / ours; of sgemm: share of that product's speed; steps/s: devices of one core"
    )


def engines(config: NetworkConfig, batch: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """One step of `batch` devices, ours and torch's, each as a call without arguments."""
    model = RecurrentForecaster(config).eval()
    network = Network(config, model.export())
    x = np.random.default_rng(0).standard_normal((batch, config.inputs), np.float32)
    state = np.zeros((batch, config.state_width), np.float32)
    cell = {"gru": nn.GRUCell, "lstm": nn.LSTMCell, "rnn": nn.RNNCell}[config.cell](
        config.inputs, config.hidden
    )
    cell.load_state_dict(
        {name.removesuffix("_l0"): weight for name, weight in model.cell.state_dict().items()}
    )
    torch_x, h = torch.from_numpy(x), torch.zeros(batch, config.hidden)
    memory = (h, h.clone()) if config.cell == "lstm" else h

    def theirs() -> torch.Tensor:
        with torch.inference_mode():
            after = cell(torch_x, memory)
            return model.readout(after[0] if config.cell == "lstm" else after)

    difference = np.abs(network.step(x, state)[0] - theirs().numpy()).max()
    if difference > 1e-5:
        raise SystemExit(f"the two engines disagree by {difference:.1e}: nothing to compare")
    return lambda: network.step(x, state), theirs


def lower_deciles(calls: tuple[Callable[[], object], ...], seconds: float) -> list[float]:
    """Lower decile of each call's wall time in seconds; the calls take turns until the time is up."""
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < FEWEST_TURNS:
        for call, taken in zip(calls, times, strict=True):
            call()  # brings this engine's weights back into the cache
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return [float(np.quantile(taken, 0.1)) for taken in times]


def matmul_flops(seconds: float) -> float:
    """Floating-point operations a second of a large square product: what the step could reach at most."""
    a = np.random.default_rng(0).standard_normal((1024, 1024), np.float32)
    out = np.empty_like(a)
    (taken,) = lower_deciles((lambda: np.matmul(a, a, out=out),), seconds)
    return 2 * 1024**3 / taken


def flops(config: NetworkConfig) -> int:
    """Multiplications and additions of the matrix products that one device's step needs."""
    return 2 * sum(int(np.prod(shape)) for shape in config.weight_shapes().values() if len(shape) == 2)


def print_machine() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown"
    )
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{platform.system()} {platform.machine()}, {model}, {os.cpu_count()} cores, load {load}")
    versions = f"Python {platform.python_version()}, numpy {np.__version__}, torch {torch.__version__}"
    print(f"{versions}, one thread each")


if __name__ == "__main__":
    main()
