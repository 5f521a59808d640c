"""A trained model package for tests, small and quick to make."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gruard.models import weights
from gruard.models.training.candidate import TrainingOptions, train
from gruard.models.training.fit import FitConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gruard.models.enrolment import History
    from gruard.models.training.candidate import Candidate
    from gruard.models.weights import ModelPackage

BUDGET = 1 / 604_800


def quick_candidate(histories: Mapping[str, History], **fit: object) -> Candidate:
    chosen = {"cell": "gru", "hidden": 8, "layers": 1, "steps": 30} | fit
    return train(histories, TrainingOptions(FitConfig(**chosen), BUDGET))  # type: ignore[arg-type]


def sealed_model(
    group: str, histories: Mapping[str, History], fields: tuple[str, ...] = ("f0", "f1", "f2"), **fit: object
) -> ModelPackage:
    candidate = quick_candidate(histories, **fit)
    used = [histories[name] for name in candidate.devices]
    return weights.seal(
        group=group,
        source="plant",
        fields=fields,
        cell=candidate.config.cell,
        hidden=candidate.config.hidden,
        layers=candidate.config.layers,
        created_s=2000.0,
        parent=None,
        span_start_s=float(used[0].time_s[0]),
        span_end_s=float(used[0].time_s[-1]),
        rows=candidate.rows,
        devices=candidate.devices,
        skill=candidate.skill,
        report=candidate.report,
        tensors=candidate.tensors,
    )
