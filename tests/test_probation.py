"""Promoted models are watched, and one that is clearly worse is taken back by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support_pipeline import UNTRAINED, opened, play
from support_swaps import REST, SHOWN, fleet, like, trained

from gruard.daemon.core.probation import FIRST_LOOK, HOPELESS, LAST_LOOK, Probation
from gruard.daemon.edges.trainer import MODELS, TrainOutcome
from gruard.daemon.rounds import KEPT
from gruard.models import weights

if TYPE_CHECKING:
    from pathlib import Path

    from gruard.daemon.pipeline import Pipeline
    from gruard.models.weights import ModelPackage

WATCHED = Probation("m", 0.4, 0.001)


@pytest.mark.parametrize(
    ("readings", "alerts", "skill", "verdict"),
    [
        (FIRST_LOOK - 1, 0, -1.0, None),  # too early
        (FIRST_LOOK, 0, -0.6, "skill"),  # far worse than the last value
        (FIRST_LOOK, 0, -0.2, None),
        (FIRST_LOOK, 0, 0.05, None),  # below the one before it, and not settled
        (LAST_LOOK, 0, 0.05, "skill"),
        (LAST_LOOK, 0, 0.35, None),
        (LAST_LOOK, 0, float("nan"), None),  # no device is ready
        (1000, 9, 0.4, None),
        (1000, 10, 0.4, "alerts"),
        (10_000, 40, 0.4, None),  # no more than five times the usual
    ],
)
def test_verdict(readings: int, alerts: int, skill: float, verdict: str | None) -> None:
    """Clearly worse, early or late, or a burst of alerts; nothing else."""
    assert WATCHED.verdict(readings=readings, devices=1, alerts=alerts, skill=skill) == verdict


@pytest.mark.parametrize(("skill", "verdict"), [(-1.4, None), (-2.1, "skill")])
def test_verdict_first_model_may_forecast_worse_than_the_last_value(
    skill: float, verdict: str | None
) -> None:
    """A detector need not be a good forecaster: it stays unless no device would be enrolled on it."""
    first = Probation("m", HOPELESS, 0.001)
    assert first.verdict(readings=FIRST_LOOK, devices=1, alerts=0, skill=skill) == verdict
    assert first.verdict(readings=LAST_LOOK, devices=1, alerts=0, skill=skill) == verdict


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return trained(tmp_path_factory.mktemp("trained") / "state")


def promote(pipeline: Pipeline, folder: Path, *packages: ModelPackage) -> None:
    (folder / MODELS).mkdir(exist_ok=True)
    for package in packages:
        weights.write(folder / MODELS, package)
        pipeline.adopt(package, "promoted")


@pytest.mark.parametrize("restarted", [False, True])
def test_worse_model_promoted_by_force_is_rolled_back(
    tmp_path: Path, good: ModelPackage, *, restarted: bool
) -> None:
    """Its parent is in charge again, the registry says why, and a restart on the way forgets nothing."""
    bad = like(good, 1.0)
    reason = None
    with opened(tmp_path, UNTRAINED) as pipeline:
        play(pipeline, fleet(0, SHOWN))
        promote(pipeline, tmp_path, good, bad)
        if not restarted:
            play(pipeline, fleet(SHOWN, SHOWN + REST))
            reason = pipeline.rounds.review()
            pipeline.commit()
    if restarted:
        with opened(tmp_path, UNTRAINED) as pipeline:
            play(pipeline, fleet(SHOWN, SHOWN + REST))
            reason = pipeline.rounds.review()
            pipeline.commit()
    assert reason in {"skill", "alerts"}
    with opened(tmp_path, UNTRAINED) as pipeline:
        (note,) = pipeline.models.values()
        rows = {row.id: row for row in pipeline.database.models()}
        assert note.id == good.manifest.id
        assert (rows[note.id].status, rows[bad.manifest.id].status) == ("live", "rolled_back")
        assert "by itself" in rows[bad.manifest.id].reason


def test_good_model_is_kept(tmp_path: Path, good: ModelPackage) -> None:
    """A model as good as the one before it stays."""
    with opened(tmp_path, UNTRAINED) as pipeline:
        play(pipeline, fleet(0, SHOWN))
        promote(pipeline, tmp_path, good, like(good, 0.001))
        play(pipeline, fleet(SHOWN, SHOWN + REST))
        assert pipeline.rounds.review() is None


def test_registry_keeps_rejected_candidates_and_the_newest_weights(
    tmp_path: Path, good: ModelPackage
) -> None:
    """A refused candidate has a row with its reason; old weights that are not in charge go."""
    with opened(tmp_path, UNTRAINED) as pipeline:
        play(pipeline, fleet(0, 100))
        others = [like(good, 0.001 * n, created_s=float(n)) for n in range(1, KEPT + 3)]
        promote(pipeline, tmp_path, good, *others)
        (group,) = pipeline.models
        pipeline.rounds._outcome = TrainOutcome(group, "rejected", "worse than the live model")
        assert pipeline.poll_training() is not None
        pipeline.commit()
        rows = pipeline.database.models()
        assert [(r.status, r.reason) for r in rows if r.status == "rejected"] == [
            ("rejected", "worse than the live model")
        ]
        assert len(rows) == KEPT + 4
        assert len(list((tmp_path / MODELS).glob("*.safetensors"))) == KEPT + 2, "the anchor stays too"
        assert (tmp_path / MODELS / f"{others[0].manifest.id}.safetensors").exists()
        assert (tmp_path / MODELS / f"{others[-1].manifest.id}.safetensors").exists()
