"""F17: a training round that goes wrong costs nothing but itself. Each fault is met by the real pipeline."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support_engine import BUDGET, SOURCE, plant_rows, readings_of
from support_pipeline import pipeline_over

from gruard.daemon.core.engine import Engine, EngineOptions
from gruard.daemon.core.events import Scored
from gruard.daemon.edges import trainer as trainer_module
from gruard.daemon.edges.database import open_database
from gruard.daemon.edges.trainer import MODELS, TrainOutcome
from gruard.daemon.pipeline import Pipeline, TrainingSettings
from gruard.models import weights

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gruard.daemon.edges.database import Database
    from gruard.models.weights import ModelPackage

WARMUP = 200
#: A child that answers with whatever the test has put into the folder.
ANSWER = "import sys, pathlib; sys.stdout.write(pathlib.Path({path!r}).read_text())"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    """A model as a real round makes it."""
    folder = tmp_path_factory.mktemp("sound")
    with open_database(folder, now_s=0.0) as database:
        pipeline = _pipeline(database, folder, TrainingSettings(hidden=8, warmup_readings=WARMUP, seed=5))
        pipeline.feed(readings_of("a", plant_rows(WARMUP + 5)))
        while pipeline.backlog:
            pipeline.advance()
            if pipeline.holding and pipeline.poll_training() is None:
                time.sleep(0.02)
        (live,) = pipeline.database.live_models()
        return weights.read(folder / MODELS, live.id)


def _pipeline(database: Database, folder: Path, training: TrainingSettings) -> Pipeline:
    return pipeline_over(Engine(EngineOptions((SOURCE,), BUDGET)), database, folder, training)


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    with open_database(tmp_path, now_s=0.0) as database:
        made = _pipeline(database, tmp_path, TrainingSettings(warmup_readings=WARMUP))
        try:
            yield made
        finally:
            made.rounds.trainer.stop()


def one_round(pipeline: Pipeline) -> tuple[TrainOutcome, list[float]]:
    """Feed a device until its first round is over and beyond; the outcome of that round, and the scores."""
    pipeline.feed(readings_of("a", plant_rows(WARMUP + 40)))
    outcome, scores = None, []
    until = time.monotonic() + 30
    while (pipeline.backlog or outcome is None) and time.monotonic() < until:
        scores += [event.score for event in pipeline.advance() if isinstance(event, Scored)]
        ended = pipeline.poll_training()
        outcome = outcome or ended
        if pipeline.holding or not pipeline.backlog:
            time.sleep(0.01)
    pipeline.commit()
    assert outcome is not None
    return outcome, scores


CHILDREN = {
    "crash": ("raise SystemExit(3)", "failed"),
    "killed for its memory": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "failed"),
    "memory error": ("x = ' ' * 10**18", "failed"),
    "hang": ("import time\nwhile True: time.sleep(1)", "timeout"),
    "hang that will not be asked": (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(1)",
        "timeout",
    ),
    "busy loop": ("while True: pass", "timeout"),
    "nothing to say": ("pass", "failed"),
    "nonsense": ("print('promoted!')", "failed"),
    "bytes that are no text": ("import sys; sys.stdout.buffer.write(b'\\xff\\xfe{')", "failed"),
    "a model that is not there": (
        'print(\'{"group": "x", "result": "promoted", "reason": "", "model": "0123456789ab"}\')',
        "failed",
    ),
    "a path for a model": (
        'print(\'{"group": "x", "result": "promoted", "reason": "", "model": "../../etc/passwd"}\')',
        "failed",
    ),
    "no model": ('print(\'{"group": "x", "result": "promoted", "reason": ""}\')', "failed"),
    "fills the disk": ("import sys\nwhile True: sys.stdout.write('x' * 100000)", "failed"),
}


@pytest.mark.parametrize("name", CHILDREN)
def test_round_that_goes_wrong_changes_nothing(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Every reading is scored, no model goes live, and the next round may begin."""
    script, result = CHILDREN[name]
    if result == "timeout":
        pipeline.rounds._settings = replace(pipeline.rounds._settings, max_seconds=1.5)
    monkeypatch.setattr(trainer_module, "COMMAND", (sys.executable, "-c", script))
    monkeypatch.setattr(trainer_module, "LARGEST_FILE_BYTES", 5_000_000)
    outcome, scores = one_round(pipeline)
    assert (outcome.result, outcome.group) == (result, pipeline.engine.devices and "plant-" + _digest())
    assert len(scores) == WARMUP + 40
    assert pipeline.models == {}
    assert pipeline.database.models() == []
    assert pipeline.rounds.trainer.group is None
    assert (tmp_path / trainer_module.LOG_NAME).stat().st_size <= 5_000_000


def _digest() -> str:
    from gruard.daemon.core.engine import group_name

    return group_name("plant", ("f0", "f1", "f2")).split("-")[1]


def _spoilt(package: ModelPackage, name: str) -> ModelPackage:
    tensors = dict(package.tensors)
    match name:
        case "a weight is not a number":
            tensors["readout.weight"] = np.full_like(tensors["readout.weight"], np.nan)
        case "a weight is huge":
            tensors["readout.weight"] = np.full_like(tensors["readout.weight"], 1e30)
        case "a tensor is missing":
            del tensors["var.weights"]
        case "a tensor has another shape":
            tensors["readout.weight"] = tensors["readout.weight"][:, :-1]
        case "a scale is 0":
            tensors["device.scale"] = np.zeros_like(tensors["device.scale"])
    return replace(package, tensors=tensors)


def _sealed(package: ModelPackage) -> ModelPackage:
    """Sealed anew, as a round with a bug would have it; only what `seal` lets through."""
    kept = {k: v for k, v in vars(package.manifest).items() if k not in {"format_version", "id", "sha256"}}
    return weights.seal(tensors=package.tensors, **kept)


@pytest.mark.parametrize(
    "name", ["a weight is huge", "a tensor is missing", "a tensor has another shape", "a scale is 0"]
)
def test_round_with_a_wrong_model_changes_nothing(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sound: ModelPackage, name: str
) -> None:
    """P8: sealed properly and wrong all the same: it is refused before it scores anything."""
    wrong = _sealed(_spoilt(sound, name))
    (tmp_path / MODELS).mkdir()
    weights.write(tmp_path / MODELS, wrong)
    outcome, scores = _answered(pipeline, tmp_path, monkeypatch, wrong.manifest.id)
    assert outcome.result == "failed"
    assert len(scores) == WARMUP + 40
    assert pipeline.models == {}


@pytest.mark.parametrize("name", ["half-written", "a flipped bit", "an old model"])
def test_round_with_a_damaged_or_old_model_changes_nothing(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sound: ModelPackage, name: str
) -> None:
    """P8: files that are not whole, and models that were live before, are refused."""
    (tmp_path / MODELS).mkdir()
    weights.write(tmp_path / MODELS, sound)
    file = tmp_path / MODELS / f"{sound.manifest.id}.safetensors"
    content = bytearray(file.read_bytes())
    if name == "half-written":
        file.write_bytes(content[: len(content) // 2])
    elif name == "a flipped bit":
        content[-9] ^= 0x10
        file.write_bytes(content)
    else:
        pipeline.engine.open_group("plant", sound.manifest.fields)
        pipeline.adopt(sound, "first")
    outcome, scores = _answered(pipeline, tmp_path, monkeypatch, sound.manifest.id)
    assert outcome.result == "failed"
    assert len(scores) == WARMUP + 40
    assert list(pipeline.models) == ([] if name != "an old model" else [f"plant-{_digest()}"])


def test_round_with_a_sound_model_is_promoted(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sound: ModelPackage
) -> None:
    """The same way with nothing wrong ends in a promotion: the refusals above are not by accident."""
    (tmp_path / MODELS).mkdir()
    weights.write(tmp_path / MODELS, sound)
    outcome, _ = _answered(pipeline, tmp_path, monkeypatch, sound.manifest.id)
    assert outcome.result == "promoted", outcome.reason
    assert [note.id for note in pipeline.models.values()] == [sound.manifest.id]


def _answered(
    pipeline: Pipeline, folder: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> tuple[TrainOutcome, list[float]]:
    answer = folder / "answer.json"
    answer.write_text(f'{{"group": "x", "result": "promoted", "reason": "", "model": "{model}"}}\n')
    script = ANSWER.format(path=str(answer))
    monkeypatch.setattr(trainer_module, "COMMAND", (sys.executable, "-c", script))
    pipeline.rounds._schedule.every_s = 0.01  # with a live model the next round would be six hours away
    return one_round(pipeline)
