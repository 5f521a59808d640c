"""The recurrent family beside what it is measured against: quality, cost per reading, memory per device.

    python bench/bench_family.py [--seconds 20] [--hidden 32] [--layers 1] [--quick] [--out FOLDER]

Live cells run as they do live, in numpy; mlp and transformer run in torch, as they do offline. The row "gru
(torch)" tells how much of a difference is the engine. For the cost all see 17 inputs (8 fields, their mask,
the gap) and give 8 outputs. Quality, each a mean:

    left        what is left of the held-back Huber loss of a ridge forecaster on six simulated plants, all
                fields, two devices a plant sharing one network; 1 is no correction
    VUS-PR      how well the whitened distance of what is left ranks faults injected into the last 30 %
    lag 3, 30   held-back loss where the cause is one flag so many readings back; beyond 7 readings nothing
                is left to the mlp, beyond 63 nothing to the transformer. 1 is no answer. "open" is with gates
                opened for a long memory (FitConfig.longest_memory), which only gru and lstm have

Figures in brackets are ratios to gru. One thread; kept in family.json with the seeds.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is imported

import numpy as np
import torch
from bench_cells import lower_deciles, print_machine
from keeping import RESULTS, keep, rounded
from plant_task import corrections, plant_task

from gruard.models.cells import CELLS, Network, NetworkConfig
from gruard.models.plants.plants import PLANTS
from gruard.models.training.comparators import OfflineConfig, OfflineNetwork, build
from gruard.models.training.fit import FitConfig, fit
from gruard.models.training.memory import delayed_recall

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

CELLS_SHOWN = (*CELLS, "mlp", "transformer")
GATED = ("gru", "lstm")
TORCH_ROW = "gru (torch)"
BATCHES = (1, 512)
INPUTS, OUTPUTS = 17, 8
DEVICES, ROWS = 2, 4000
FLAG_LAGS, FLAG_DEVICES = (3, 30), 100
NO_FORECASTER = "ridge alone"


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done; --quick does too little to mean anything."""

    plants: tuple[str, ...] = tuple(PLANTS)
    seeds: tuple[int, ...] = (0, 1)
    steps: int = FitConfig().steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="about how long the timing takes")
    parser.add_argument("--quick", action="store_true", help="a few steps: the quality means nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print_machine()
    effort = Effort(("thermostat",), (0,), 5) if options.quick else Effort()
    rows = step_costs(options.hidden, options.layers, options.seconds)
    for cell in CELLS_SHOWN:
        rows[cell] |= quality(FitConfig(cell, options.hidden, options.layers, steps=effort.steps), effort)
        print(f"{cell}: {rows[cell]}", flush=True)
    rows[NO_FORECASTER] = ridge_alone(effort)
    print_table(rows)
    ratio = {f"B={batch}": per_reading(rows, "transformer", batch) for batch in BATCHES}
    print("\na reading costs the transformer, of what it costs the gru:", ratio)
    keep(
        options.out / "family.json",
        {
            "hidden": options.hidden,
            "layers": options.layers,
            "seeds": effort.seeds,
            "plants": effort.plants,
            "transformer_cost_per_reading_of_gru": ratio,
            "rows": rows,
        },
    )


def per_reading(rows: dict[str, dict[str, Any]], name: str, batch: int) -> dict[str, float | None]:
    """How many times the cost of gru: of gru as it runs live, and of gru in torch."""
    head = f"us, B={batch}"
    return {
        live: rounded(rows[name][head] / rows[other][head], 3)
        for live, other in (("live gru", "gru"), (TORCH_ROW, TORCH_ROW))
    }


def step_costs(hidden: int, layers: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Microseconds per reading at every batch size, bytes of state and number of weights, by kind."""
    rows: dict[str, dict[str, Any]] = {}
    for name, times in step_times(hidden, layers, seconds).items():
        rows[name] = {f"us, B={batch}": rounded(us, 3) for batch, us in zip(BATCHES, times, strict=True)}
        if name != TORCH_ROW:
            network = build(name, INPUTS, hidden, layers, OUTPUTS)
            rows[name]["state bytes"] = 4 * network.config.state_width
            rows[name]["weights"] = sum(weight.numel() for weight in network.parameters())
    return rows


def step_times(hidden: int, layers: int, seconds: float) -> dict[str, tuple[float, ...]]:
    """Microseconds per reading of every kind at every batch size; kinds take turns."""
    times: dict[str, list[float]] = {}
    for batch in BATCHES:
        calls = {cell: stepper(cell, hidden, layers, batch) for cell in CELLS_SHOWN}
        calls["gru (torch)"] = torch_stepper(hidden, layers, batch)
        taken = lower_deciles(tuple(calls.values()), seconds / len(BATCHES))
        for name, second in zip(calls, taken, strict=True):
            times.setdefault(name, []).append(second / batch * 1e6)
    return {name: tuple(found) for name, found in times.items()}


def stepper(cell: str, hidden: int, layers: int, batch: int) -> Callable[[], object]:
    """One step of `batch` devices by the engine that this kind has."""
    weights = build(cell, INPUTS, hidden, layers, OUTPUTS).export()
    network: Network | OfflineNetwork
    if cell in CELLS:
        network = Network(NetworkConfig(cell, INPUTS, hidden, layers, OUTPUTS), weights)
    else:
        network = OfflineNetwork(OfflineConfig(cell, INPUTS, hidden, layers, OUTPUTS), weights)
    x, state = readings(batch), np.zeros((batch, network.config.state_width), np.float32)
    for _ in range(64):  # fill the window: an empty one could be cheaper
        state = network.step(x, state)[1]
    return lambda: network.step(x, state)


def torch_stepper(hidden: int, layers: int, batch: int) -> Callable[[], object]:
    model = build("gru", INPUTS, hidden, layers, OUTPUTS).eval()
    x, state = torch.from_numpy(readings(batch))[:, None], model.zero_state(batch)

    def step() -> object:
        with torch.inference_mode():
            return model(x, state)

    return step


def readings(batch: int) -> Floats:
    return np.random.default_rng(0).standard_normal((batch, INPUTS), np.float32)


def quality(config: FitConfig, effort: Effort) -> dict[str, Any]:
    """What a kind makes of the plants and of the flags: means over plants and seeds."""
    left, ranked, seconds = [], [], []
    for plant in effort.plants:
        task = plant_task(plant, DEVICES, ROWS, faulty=True)
        for seed in effort.seeds:
            began = time.perf_counter()
            correction = corrections(task, replace(config, seed=seed))
            seconds.append(time.perf_counter() - began)
            left.append(task.huber_left(correction).mean())
            ranked.append(task.vus_pr(correction))
    found = {
        "left": rounded(float(np.mean(left))),
        "VUS-PR": rounded(float(np.mean(ranked))),
        "fit s": rounded(float(np.mean(seconds)), 2),
    }
    for lag in FLAG_LAGS:
        found[f"lag {lag}"] = flags_left(config, lag, effort.seeds)
    if config.cell in GATED:
        longest = FLAG_LAGS[-1] + 10
        found[f"lag {FLAG_LAGS[-1]}, open"] = flags_left(
            replace(config, longest_memory=longest), FLAG_LAGS[-1], effort.seeds
        )
    return found


def flags_left(config: FitConfig, lag: int, seeds: tuple[int, ...]) -> float | None:
    """Held-back loss, of no answer 1, where a flag is to be told `lag` readings later: mean over seeds."""
    losses = []
    for seed in seeds:
        task = delayed_recall(10 * (lag + 10), lag, seed, FLAG_DEVICES)
        result = fit(
            *task,
            held_back_from=7 * (lag + 10),
            config=replace(config, window=96, burn_in=0, input_noise=0.05, input_drop=0.0, seed=seed),
        )
        losses.append(result.held_back_loss / result.zero_loss)
    return rounded(float(np.mean(losses)))


def ridge_alone(effort: Effort) -> dict[str, Any]:
    """The same without any network."""
    tasks = [plant_task(plant, DEVICES, ROWS, faulty=True) for plant in effort.plants]
    ranked = [task.vus_pr(np.zeros_like(task.left)) for task in tasks]
    return {"left": 1.0, "VUS-PR": rounded(float(np.mean(ranked)))}


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    """A line for each kind; what does not apply is left out."""
    heads = list(dict.fromkeys(head for row in rows.values() for head in row))
    print("\n" + f"{'':12}" + "".join(f"{head:>16}" for head in heads))
    for name, row in rows.items():
        cells = (beside(row.get(head), rows["gru"].get(head)) for head in heads)
        print(f"{name:12}" + "".join(f"{cell:>16}" for cell in cells))


def beside(mine: float | None, gru: float | None) -> str:
    if mine is None:
        return ""
    return f"{mine:,.6g} ({mine / gru:.2f})" if gru else f"{mine:,.6g}"


if __name__ == "__main__":
    main()
