"""How far back a network can learn to remember: the plot and the figures behind it.

    python bench/bench_long_memory.py [--seeds 3] [--quick] [--out FOLDER]

1. Gradient: norm of d h[t] / d x[t-k] over the lag k, as built, with open gates, and after training.
2. Recall: a flag of +1 or -1 shows for one row and is asked for k rows later, nothing else helps; share of
   the answers that are right on sequences never trained on. Unlimited sequences, up to 300 steps.
3. Clipping: gradient norm of a run from matrices that stretch the memory, clipped and not.
4. A lag of 200 through `fit`, the training of the product: 200 devices of fixed length, a part held back.
5. The plant `delayed`, whose cause lies 150 to 250 readings back, through `fit`: held-back Huber loss of what
   a ridge forecaster leaves over, 1 and 16 readings ahead, downstream of the pipe. 1 is no correction.

Writes long_memory.json and long_memory.png; what they say is told in bench/results/networks.md. Bounded:
about half an hour on one slow core. Needs matplotlib (the extra "report").
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is imported

import numpy as np
from keeping import RESULTS, keep, rounded
from plant_task import corrections, plant_task

from gruard.models.training.fit import FitConfig, fit
from gruard.models.training.memory import (
    as_built,
    chrono,
    delayed_recall,
    exploding,
    gradient_norms,
    orthogonal,
    recall,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gruard.models.training.memory import Descent, Start

HIDDEN = 32
#: Lines of the plot: name, cell, what starts it, colour and stroke.
LINES = {
    "mlp, window of 8": ("mlp", "built", "0.55", ":"),
    "rnn": ("rnn", "built", "tab:red", "--"),
    "rnn, orthogonal start": ("rnn", "orthogonal", "tab:red", "-"),
    "lstm": ("lstm", "built", "tab:blue", "--"),
    "lstm, open gates": ("lstm", "open", "tab:blue", "-"),
    "gru": ("gru", "built", "tab:green", "--"),
    "gru, open gates": ("gru", "open", "tab:green", "-"),
}
GRADIENT_LAGS = (0, 1, 2, 5, 10, 20, 35, 50, 75, 100, 150, 200)
RECALL_LAGS = (5, 10, 20, 50, 100, 200)
#: The lag that networks are trained on whose gradients are shown after training.
TRAINED_LAG = 50
CLIPS = {"unclipped": None, "clipped at 1": 1.0}
#: Networks sent through `fit`: name -> cell, whether gates are opened.
FITTED = {
    "mlp": ("mlp", False),
    "rnn": ("rnn", False),
    "lstm": ("lstm", False),
    "lstm, open gates": ("lstm", True),
    "gru": ("gru", False),
    "gru, open gates": ("gru", True),
}
FIT_LAG, FIT_DEVICES, FIT_FLAGS = 200, 200, 8
#: Readings ahead, the field downstream of the pipe, and how long gates are opened for it.
AHEAD, DOWNSTREAM, PLANT_MEMORY = (1, 16), 1, 300


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="of the recall curves")
    parser.add_argument(
        "--quick", action="store_true", help="a few steps of everything: the figures mean nothing"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    began = time.monotonic()
    seeds, quick = range(options.seeds), options.quick
    lags = (5, 10) if quick else RECALL_LAGS
    gradients = gradient_curves(lags[-1] if quick else TRAINED_LAG, quick=quick)
    recalled = {name: recall_curve(name, lags, seeds, quick=quick) for name in LINES}
    descents = {name: exploding(clip, seed=0, steps=20 if quick else 150) for name, clip in CLIPS.items()}
    lagged = {name: lag_losses(name, range(1 if quick else 2), quick=quick) for name in FITTED}
    plant = {f"{h} ahead": plant_losses(h, quick=quick) for h in AHEAD}
    figures = {
        "seeds": options.seeds,
        "hidden": HIDDEN,
        "gradient_norm": {"lags": GRADIENT_LAGS, **gradients},
        "recall_accuracy": {"lags": lags, **recalled},
        "clipping": {name: clipping(descent) for name, descent in descents.items()},
        f"fit_lag_{FIT_LAG}_loss": lagged,
        "fit_delayed_plant_loss": plant,
        "minutes": rounded((time.monotonic() - began) / 60, 2),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    plot(options.out / "long_memory.png", lags, gradients, recalled, descents)
    keep(options.out / "long_memory.json", figures)


def start_of(name: str, lag: int) -> tuple[str, Start]:
    """Cell and start of a line of the plot; gates open a little beyond the lag."""
    cell, kind, _, _ = LINES[name]
    return cell, {"built": as_built, "orthogonal": orthogonal, "open": chrono(lag + 10)}[kind]


def gradient_curves(trained_lag: int, *, quick: bool) -> dict[str, Any]:
    """Norms by lag, before training and after it on one lag; there is no curve for what has no memory."""
    curves: dict[str, Any] = {"before training": {}, f"after training on a lag of {trained_lag}": {}}
    before, after = curves.values()
    for name, (cell, _, _, _) in LINES.items():
        if cell == "mlp":
            continue
        start = start_of(name, 200)[1]
        before[name] = listed(gradient_norms(cell, HIDDEN, GRADIENT_LAGS, seed=0, start=start))
        start = start_of(name, trained_lag)[1]
        weights = recall(cell, trained_lag, 0, start=start, steps=5 if quick else 300).weights
        after[name] = listed(gradient_norms(cell, HIDDEN, GRADIENT_LAGS, seed=0, weights=weights))
        print(
            f"gradient {name:24} at {GRADIENT_LAGS[-1]}: {before[name][-1]:.1e} -> {after[name][-1]:.1e}",
            flush=True,
        )
    return curves


def recall_curve(name: str, lags: tuple[int, ...], seeds: range, *, quick: bool) -> list[list[float | None]]:
    """Share of right answers for every lag, each a list over seeds."""
    curve = []
    for lag in lags:
        cell, start = start_of(name, lag)
        found = [recall(cell, lag, seed, start=start, steps=5 if quick else 300) for seed in seeds]
        curve.append(listed(np.array([one.accuracy for one in found])))
        print(f"recall {name:24} {lag:4} rows back: {curve[-1]}", flush=True)
    return curve


def clipping(descent: Descent) -> dict[str, Any]:
    """The end of a run, and the largest it met."""
    return {
        "steps": len(descent.losses),
        "finite": descent.finite,
        "first_loss": rounded(descent.losses[0]),
        "last_loss": rounded(descent.losses[-1]),
        "largest_gradient": rounded(max(descent.gradients)),
        "largest_update": rounded(max(descent.updates)),
    }


def lag_losses(name: str, seeds: range, *, quick: bool) -> list[float | None]:
    """Held-back loss on a lag of 200 rows as a share of that of no answer, for every seed."""
    cell, opened = FITTED[name]
    losses = []
    for seed in seeds:
        task = delayed_recall(FIT_FLAGS * (FIT_LAG + 10) + 10, FIT_LAG, seed, 10 if quick else FIT_DEVICES)
        config = FitConfig(
            cell,
            HIDDEN,
            longest_memory=FIT_LAG if opened else None,
            window=2 * FIT_LAG,
            steps=5 if quick else 800,
            learning_rate=1e-2,
            burn_in=0,
            input_noise=0.05,
            input_drop=0.0,
            patience=99,  # it learns nothing for long, then all at once
            seed=seed,
        )
        result = fit(*task, int(0.75 * task[0].shape[1]), config)
        losses.append(result.held_back_loss / result.zero_loss)
    print(f"fit, lag of {FIT_LAG}: {name:18} {np.round(losses, 3)}", flush=True)
    return listed(np.array(losses))


def plant_losses(ahead: int, *, quick: bool) -> dict[str, float | None]:
    """Held-back loss downstream, so many readings ahead, as a share of that of the ridge forecaster alone."""
    task = plant_task("delayed", 2 if quick else 6, 1500 if quick else 8000, ahead=ahead)
    losses = {}
    for name, (cell, opened) in FITTED.items():
        config = FitConfig(
            cell,
            HIDDEN,
            longest_memory=PLANT_MEMORY if opened else None,
            window=512,
            steps=5 if quick else 300,
            input_noise=0.1,
            input_drop=0.05,
            patience=10,
        )
        losses[name] = rounded(task.huber_left(corrections(task, config))[DOWNSTREAM])
        print(f"fit, plant, {ahead} ahead: {name:18} {losses[name]}", flush=True)
    return losses


def listed(numbers: NDArray[Any]) -> list[float | None]:
    return [rounded(number) for number in numbers.tolist()]


def plot(
    path: Path,
    lags: tuple[int, ...],
    gradients: dict[str, Any],
    recalled: dict[str, Any],
    descents: dict[str, Descent],
) -> None:
    """Four panels: gradients before and after training, recall, and what clipping does."""
    import matplotlib as mpl  # noqa: PLC0415 -- slow to load, and the figures do without it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, panels = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for panel, (moment, curves) in zip(panels[0], gradients.items(), strict=True):
        for name, norms in curves.items():
            _, _, colour, stroke = LINES[name]
            panel.plot(GRADIENT_LAGS, norms, stroke, color=colour, label=name)
        panel.set(yscale="log", ylim=(1e-20, 10), xlabel="rows back, k", title=f"Gradient {moment}")
        panel.set_ylabel("|d h[t] / d x[t-k]|")
    panels[0, 0].legend(loc="lower right", fontsize="small")
    left, right = panels[1]
    for name, curve in recalled.items():
        _, _, colour, stroke = LINES[name]
        left.plot(
            lags, [np.mean(found) for found in curve], f"{stroke}o", color=colour, label=name, markersize=4
        )
    left.axhline(0.5, color="0.8", linewidth=6, zorder=0)
    left.set(xscale="log", xticks=lags, xticklabels=lags, xlabel="rows back, k", ylabel="right answers")
    left.set_title("Recall of a flag k rows back (grey: guessing)")
    left.minorticks_off()
    for name, descent in descents.items():
        right.plot(descent.gradients, label=name)
    right.set(
        yscale="log", xlabel="training step", ylabel="gradient norm", title="rnn from exploding weights"
    )
    right.legend()
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    main()
