"""A candidate on trial: beside an equal, a blunt and a nervous model in charge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support_engine import BUDGET, plant_rows
from support_models import quick_candidate

from gruard.models.enrolment import fitted_devices
from gruard.models.forecaster import Forecaster
from gruard.models.history import History
from gruard.models.training.trial import MAY_ADD, Changes, Model, Trial


def history(rows: np.ndarray) -> History:
    return History(np.arange(float(len(rows))), rows, np.ones(len(rows), bool))


@pytest.fixture(scope="module")
def plants() -> dict[str, History]:
    return {"a": history(plant_rows(1000)), "b": history(plant_rows(1000, seed=1))}


@pytest.fixture(scope="module")
def model(plants: dict[str, History]) -> Model:
    candidate = quick_candidate(plants)
    forecaster = Forecaster(candidate.config, candidate.tensors)
    return Model(forecaster, fitted_devices(candidate.devices, candidate.tensors), candidate.rows)


@pytest.fixture(scope="module")
def trial(plants: dict[str, History]) -> Trial:
    return Trial(plants, BUDGET, seed=0)


def widened(model: Model, factor: float) -> Model:
    """The same with every range of normal wider by a factor, as poisoned readings would make it."""
    fitted = {
        name: replace(one, quantile=one.median + np.float32(factor) * (one.quantile - one.median))
        for name, one in model.fitted.items()
    }
    return replace(model, fitted=fitted)


def test_judge_first_model_is_only_measured(trial: Trial, model: Model) -> None:
    """There is nothing to compare it with; what it finds of clear and less clear faults is told."""
    verdict = trial.judge(model, None)
    assert (verdict.refusal, verdict.changes) == ("", None)
    assert verdict.faults > 100
    assert 0.4 < verdict.recall < 1.0
    assert verdict.told == f"finds {verdict.recall:.0%} of {verdict.faults} injected faults"


def test_judge_equal_of_the_model_in_charge_is_accepted(trial: Trial, model: Model) -> None:
    """The same model changes no alert and misses no fault."""
    verdict = trial.judge(model, model, replace(model))
    assert verdict.refusal == ""
    assert verdict.changes is not None
    assert verdict.changes[:3] == (0, 0, 0)
    assert verdict.recall == verdict.recall_before
    assert verdict.told.startswith("would add 0 alerts, drop 0, change 0; finds ")


def test_judge_candidate_that_sees_less_is_refused(trial: Trial, model: Model) -> None:
    """A range of normal that has been widened costs sight, and the refusal says how much."""
    verdict = trial.judge(widened(model, 3.0), model)
    assert "injected faults, the model in charge" in verdict.refusal
    assert verdict.recall < trial.judge(model, None).recall


def test_judge_small_losses_do_not_add_up(trial: Trial, model: Model) -> None:
    """Beside a model in charge that is as blunt as itself a candidate is still held to the anchor."""
    blunt = widened(model, 3.0)
    assert trial.judge(blunt, blunt).refusal == ""
    assert "injected faults, the anchor" in trial.judge(blunt, blunt, model).refusal


def test_judge_model_that_has_seen_little_is_no_measure(trial: Trial, model: Model) -> None:
    """A first model from few readings takes more for a fault than one that has seen what is normal."""
    young = replace(model, rows=model.rows // 3)
    blunter = widened(model, 1.6)
    assert trial.judge(blunter, model).refusal
    assert trial.judge(blunter, young).refusal == ""


def test_judge_candidate_that_alarms_at_healthy_readings_is_refused(
    plants: dict[str, History], model: Model
) -> None:
    """An alert-level replay of the newest readings: what it would add is told, and past a bound refused."""
    nervous = replace(
        model, fitted={name: replace(one, level=one.level * 0.2) for name, one in model.fitted.items()}
    )
    noisy = {
        name: replace(h, values=h.values * (1.0 + 0.1 * (np.arange(1000) % 250 > 200))[:, None])
        for name, h in plants.items()
    }
    verdict = Trial(noisy, BUDGET, seed=0).judge(nervous, widened(model, 20.0))
    assert verdict.changes is not None
    assert verdict.changes.added > MAY_ADD
    assert verdict.refusal == f"it {verdict.changes}"
    assert f"would add {verdict.changes.added} alerts, drop 0" in verdict.refusal


def test_judge_on_few_readings_accepts_and_says_so(model: Model) -> None:
    """Where there is too little to try a model on, nothing is found against it."""
    verdict = Trial({"a": history(plant_rows(300))}, BUDGET, seed=0).judge(model, model)
    assert (verdict.refusal, verdict.faults, verdict.told) == ("", 0, "too few readings for a trial")


@pytest.mark.parametrize(
    ("changes", "within"),
    [
        (Changes(2, 0, 0, 0), True),
        (Changes(3, 0, 0, 0), False),
        (Changes(3, 1, 0, 0), True),
        (Changes(4, 0, 9, 20), True),
        (Changes(5, 0, 0, 20), False),
    ],
)
def test_changes_bound_grows_with_what_there_was(changes: Changes, *, within: bool) -> None:
    """Two more alerts than are dropped are accepted, and one for every ten there were."""
    assert changes.is_within_bound is within


def test_changes_are_told_in_a_sentence() -> None:
    """The form in which operators read it."""
    assert str(Changes(3, 11, 2, 20)) == "would add 3 alerts, drop 11, change 2"
    assert str(Changes(1, 0, 0, 0)) == "would add 1 alert, drop 0, change 0"
