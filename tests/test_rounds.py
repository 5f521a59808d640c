"""When training rounds begin, why, and how they give way to scoring: the real pipeline and real children."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support_engine import plant_rows, readings_of
from support_mqtt import wait_until
from support_pipeline import QUICK, UNTRAINED, QuietRound, finish_round, opened, play

from gruard.daemon import training_round
from gruard.daemon.core.events import Alert
from gruard.daemon.core.overload import PAUSE_AFTER_S
from gruard.daemon.core.payloads import sentence
from gruard.daemon.edges import trainer as trainer_module
from gruard.daemon.edges.kept_round import FIT_NAME, MOST_STARTS, REQUEST_NAME, KeptRound
from gruard.daemon.edges.trainer import LOG_NAME

if TYPE_CHECKING:
    from pathlib import Path

    from gruard.daemon.edges.trainer import TrainRequest
    from gruard.daemon.pipeline import Pipeline


WARMUP = QUICK.warmup_readings


def group_of(pipeline: Pipeline) -> str:
    (group,) = pipeline.engine.groups
    return group


def test_begin_if_due_new_readings_begin_a_round_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first round has its reason, and after so many readings more there is another."""
    caplog.set_level(logging.INFO)
    rows = plant_rows(WARMUP + 140)
    with opened(tmp_path / "a", replace(QUICK, after_readings=100, least_pause_s=0.0)) as pipeline:
        play(pipeline, readings_of("a", rows[: WARMUP + 90]))
        assert dict(pipeline.rounds.started) == {"first": 1}
        play(pipeline, readings_of("a", rows[WARMUP + 90 :], start_s=1090.0 + WARMUP))
        assert dict(pipeline.rounds.started) == {"first": 1, "readings": 1}
    assert "the group has no model" in caplog.text
    assert "there are enough new readings" in caplog.text


def test_ask_begins_a_round_without_readings(tmp_path: Path) -> None:
    """A round by command waits for nothing but the one that runs; a group that is not there is refused."""
    with opened(tmp_path / "a") as pipeline:
        play(pipeline, readings_of("a", plant_rows(WARMUP + 20)))
        assert not pipeline.rounds.ask("nothing of the kind")
        assert pipeline.rounds.ask(group_of(pipeline))
        pipeline.advance()
        assert not pipeline.rounds.is_asked
        assert pipeline.rounds.started["command"] == 1
        assert finish_round(pipeline).result in {"promoted", "rejected"}


def test_paused_rounds_rest_until_they_may_go_on(tmp_path: Path) -> None:
    """While rounds rest none begins, not even one that was asked for; it begins afterwards."""
    with opened(tmp_path / "a", hold=False) as pipeline:
        pipeline.rounds.paused = True
        play(pipeline, readings_of("a", plant_rows(WARMUP + 20)))
        pipeline.rounds.ask(group_of(pipeline))
        pipeline.advance()
        assert pipeline.rounds.trainer.group is None
        pipeline.rounds.paused = False
        pipeline.advance()
        assert pipeline.rounds.trainer.group == group_of(pipeline)


def test_poll_round_waits_while_scoring_is_behind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A queue that stays long pauses the round; once it is worked off the round goes on to its end."""
    caplog.set_level(logging.INFO)
    with opened(tmp_path / "a") as pipeline:
        play(pipeline, readings_of("a", plant_rows(WARMUP + 20)))
        pipeline.rounds.ask(group_of(pipeline))
        pipeline.advance()
        trainer = pipeline.rounds.trainer

        def waits() -> bool:
            assert pipeline.poll_training(waiting=QUICK.pause_at + 1) is None
            return trainer.paused

        assert wait_until(waits, 10 * PAUSE_AFTER_S)
        for _ in range(30):  # far longer than the round takes
            assert pipeline.poll_training(waiting=QUICK.pause_at + 1) is None
            time.sleep(0.1)
        assert finish_round(pipeline).result in {"promoted", "rejected"}
    assert "waits: scoring is behind" in caplog.text
    assert "goes on" in caplog.text
    assert ": fitting, " in caplog.text


def test_poll_watches_slow_drift_that_rounds_would_learn(tmp_path: Path) -> None:
    """A level that creeps away is learned round by round, and told all the same: one alert, of kind drift."""
    rows = plant_rows(2400)
    rows[:, 1] += np.maximum(np.arange(2400) - 1000, 0) * 0.006
    training = replace(QUICK, every_s=1e9, first_days_s=600.0)
    told: list[Alert] = []
    with opened(tmp_path, training) as pipeline:
        play(pipeline, readings_of("a", rows[:1000]))
        group = group_of(pipeline)
        for end in (1000, 1700, 2400):
            play(pipeline, readings_of("a", rows[:end])[max(end - 700, 1000) :])
            pipeline.rounds.ask(group)
            pipeline.settle()
            outcome = finish_round(pipeline)
            assert outcome.watched
            told += [e for e in pipeline.advance() if isinstance(e, Alert)]
        pipeline.commit()
        (open_alert,) = pipeline.database.alerts(99, open_only=True)
    assert {(e.kind, e.device) for e in told} == {("drift", "a")}
    assert told[0].state == "opened"
    assert open_alert.id == told[0].id
    assert "a has drifted: f1 is about" in sentence(told[-1])


def test_begin_tells_the_round_of_new_normals(tmp_path: Path) -> None:
    """What a device was before its new normal is left out of training, and the alarm's readings teach."""
    with opened(tmp_path, UNTRAINED) as pipeline:
        rows = plant_rows(2300)
        rows[1100:] += 30.0
        play(pipeline, readings_of("a", rows))
        device = pipeline.engine.devices["a"]
        asked: list[TrainRequest] = []
        pipeline.rounds.trainer.start = lambda request, _: asked.append(request)  # type: ignore[method-assign]
        pipeline.rounds.ask(group_of(pipeline))
        pipeline.settle()
        history = training_round._histories(asked[0], QuietRound())["a"]
    assert asked[0].new_normals == {"a": (device.normal_from_s, device.normal_to_s)}
    assert history.time_s[0] == device.normal_from_s
    assert history.normal[:900].all()


#: A real round that saves its fit before every step.
SAVING = """
import sys
from gruard.models.training import fit
fit.SAVE_S = 0.0
from gruard.daemon.training_round import main
sys.exit(main())
"""
ROWS = plant_rows(WARMUP + 20)


@pytest.fixture
def saving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "COMMAND", (sys.executable, "-c", SAVING))


def cut_off(folder: Path) -> None:
    """A state directory whose daemon ended, with kill -9, in the middle of a fit."""
    with opened(folder) as pipeline:
        pipeline.feed(readings_of("a", ROWS))
        while pipeline.rounds.trainer.group is None:
            pipeline.advance()
        child = pipeline.rounds.trainer._child
        assert child is not None
        # The first check tells of progress: by then some steps are saved.
        assert wait_until(lambda: b"fitting" in (folder / LOG_NAME).read_bytes(), 60)
        os.kill(child.pid, signal.SIGKILL)


def test_resume_round_that_was_cut_off_ends_as_if_it_had_not_been(
    tmp_path: Path, saving: None, caplog: pytest.LogCaptureFixture
) -> None:
    """After kill -9 the next start goes on with the fit, and its model takes charge where it would have."""
    with opened(tmp_path / "whole") as pipeline:
        play(pipeline, readings_of("a", ROWS))
        (whole,) = pipeline.database.live_models()
        assert not (tmp_path / "whole" / FIT_NAME).exists()
    cut_off(tmp_path / "cut")
    caplog.set_level(logging.INFO)
    with opened(tmp_path / "cut") as pipeline:
        assert pipeline.rounds.holding
        assert dict(pipeline.rounds.started) == {"resumed": 1}
        play(pipeline, readings_of("a", ROWS))  # the broker hands over again what was not acknowledged
        (resumed,) = pipeline.database.live_models()
        counts = [pipeline.engine.devices["a"].count]
    assert resumed.id == whole.id
    assert "went on at step" in resumed.reason
    assert counts == [len(ROWS)]
    assert not [name for name in (FIT_NAME, REQUEST_NAME) if (tmp_path / "cut" / name).exists()]


@pytest.mark.parametrize("damage", ["fit", "request", "settings", "tries"])
def test_resume_what_does_not_hold_any_more_begins_anew(tmp_path: Path, saving: None, damage: str) -> None:
    """A damaged fit, a damaged or outdated request and one tried too often cost what was done, no more."""
    cut_off(tmp_path)
    settings = QUICK
    if damage == "fit":
        (tmp_path / FIT_NAME).write_bytes((tmp_path / FIT_NAME).read_bytes()[:-1])
    elif damage == "request":
        (tmp_path / REQUEST_NAME).write_text("{")
    elif damage == "settings":
        settings = replace(QUICK, hidden=12)
    else:
        kept = KeptRound(tmp_path)
        for _ in range(MOST_STARTS - 1):
            again = kept.find()
            assert again is not None
            kept.begin(again)
    with opened(tmp_path, settings) as pipeline:
        assert dict(pipeline.rounds.started) == ({"resumed": 1} if damage == "fit" else {})
        play(pipeline, readings_of("a", ROWS))
        (live,) = pipeline.database.live_models()
        assert pipeline.rounds.started["first"] == (damage != "fit")
    assert "went on at step" not in live.reason
