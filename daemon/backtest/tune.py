"""The search for settings of the model: a tree-structured Parzen estimator, seeded, in memory.

Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization", as optuna has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from gruard.daemon.settings_tables import Model
from gruard.models.cells import CELLS
from gruard.models.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gruard.daemon.backtest.gain import Worth

#: What is searched, and wider where the present settings lie outside.
HIDDEN, LAYERS, DROPOUT, LEAST_WARMUP = (8, 64), (1, 2), (0.0, 0.5), 100


@dataclass(frozen=True, slots=True)
class Tried:
    """Settings and what they were worth on the readings that select."""

    model: Model
    worth: Worth


@dataclass(frozen=True, slots=True)
class Space:
    """Ranges that are searched, both ends included. Every cell is."""

    hidden: tuple[int, int]
    layers: tuple[int, int]
    dropout: tuple[float, float]
    warmup_readings: tuple[int, int]


def space_around(present: Model, most_warmup: int) -> Space:
    """The ranges, wide enough for the present settings; `most_warmup` rows stand before every part."""
    return Space(
        (min(HIDDEN[0], present.hidden), max(HIDDEN[1], present.hidden)),
        (min(LAYERS[0], present.layers), max(LAYERS[1], present.layers)),
        (min(DROPOUT[0], present.dropout), max(DROPOUT[1], present.dropout)),
        (min(LEAST_WARMUP, present.warmup_readings), max(most_warmup, present.warmup_readings)),
    )


def search(
    space: Space,
    present: Tried,
    trials: int,
    seed: int,
    judge: Callable[[Model], Worth | None],
    enough: Callable[[], bool],
) -> list[Tried]:
    """Try settings until there are `trials` of them, or `enough`, or `judge` gives None; in their order.

    The present settings are known to the search from the start and are not among those returned. Settings
    with which nothing can be trained count as trials and teach the search to stay away.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    axes = {
        "cell": CategoricalDistribution(CELLS),
        "hidden": IntDistribution(*space.hidden, log=True),
        "layers": IntDistribution(*space.layers),
        "dropout": FloatDistribution(*space.dropout),
        "warmup_readings": IntDistribution(*space.warmup_readings, log=True),
    }
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.add_trial(
        optuna.trial.create_trial(
            params=present.model.model_dump(), distributions=axes, value=present.worth.worth
        )
    )
    tried: list[Tried] = []
    for n in range(trials):
        if n and enough():
            break
        trial = study.ask(axes)
        model = Model(**{**trial.params, "dropout": round(trial.params["dropout"], 2)})
        try:
            found = judge(model)
        except ModelError:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        if found is None:
            break
        study.tell(trial, found.worth)
        tried.append(Tried(model, found))
    return tried
