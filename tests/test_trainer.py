"""The training child from outside: it may crash, hang or talk nonsense."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import msgspec
import pytest
from support_mqtt import wait_until

from gruard.daemon.edges import trainer as trainer_module
from gruard.daemon.edges.trainer import LOG_NAME, Trainer, TrainOutcome, TrainRequest
from gruard.models.calibration import Budget

if TYPE_CHECKING:
    from pathlib import Path


def request(folder: Path, **changes: object) -> TrainRequest:
    known = {
        "directory": str(folder),
        "group": "g",
        "source": "plant",
        "fields": ("f0",),
        "devices": ("a",),
        "max_rows": 100,
        "before_s": None,
        "parent": None,
        "cell": "gru",
        "hidden": 8,
        "layers": 1,
        "dropout": 0.0,
        "seed": 0,
        "budget": Budget(),
        "max_seconds": 30.0,
        "nice": 10,
        "now_s": 0.0,
    }
    return TrainRequest(**(known | changes))  # type: ignore[arg-type]


def outcome_of(trainer: Trainer, now: float = 1.0) -> TrainOutcome:
    found: list[TrainOutcome] = []

    def poll() -> bool:
        outcome = trainer.poll(now)
        if outcome is not None:
            found.append(outcome)
        return bool(found)

    assert wait_until(poll, 30)
    return found[0]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> object:
    """Let the child run a script of the test's instead of a round: its faults cannot be had otherwise."""

    def use(script: str) -> None:
        folder = tmp_path / "stub"
        folder.mkdir(exist_ok=True)
        (folder / "round.py").write_text(script)
        monkeypatch.setattr(trainer_module, "COMMAND", (sys.executable, str(folder / "round.py")))

    return use


def test_poll_without_a_round_is_none(tmp_path: Path) -> None:
    """Nothing runs, nothing to tell."""
    assert Trainer(tmp_path).poll(0.0) is None


def test_start_no_database_fails_with_a_reason(tmp_path: Path) -> None:
    """A round that cannot read history is a failed round, not a crash of the daemon."""
    trainer = Trainer(tmp_path)
    trainer.start(request(tmp_path), 0.0)
    assert trainer.group == "g"
    outcome = outcome_of(trainer)
    assert outcome.result == "failed"
    assert outcome.reason
    assert trainer.group is None


def test_start_while_a_round_runs_is_a_programming_error(tmp_path: Path, scripted: object) -> None:
    """There is one round at a time."""
    scripted("import time; time.sleep(60)")  # type: ignore[operator]
    trainer = Trainer(tmp_path)
    trainer.start(request(tmp_path), 0.0)
    with pytest.raises(ValueError, match="running"):
        trainer.start(request(tmp_path), 0.0)
    trainer.stop()


def test_poll_hung_round_ends_at_its_deadline(tmp_path: Path, scripted: object) -> None:
    """A child that ignores everything is killed and reported as timed out."""
    scripted("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)")  # type: ignore[operator]
    trainer = Trainer(tmp_path)
    trainer.start(request(tmp_path, max_seconds=5.0), 100.0)
    child = trainer._child
    assert child is not None
    time.sleep(0.5)
    assert trainer.poll(104.9) is None
    outcome = trainer.poll(105.1)
    assert outcome is not None
    assert outcome.result == "timeout"
    assert child.poll() is not None
    assert trainer.group is None


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("import os; os.kill(os.getpid(), 9)", "-9"),
        ("raise MemoryError('no room')", "no room"),
        ("print('all fine')", "all fine"),
        ("import sys; sys.stdout.buffer.write(bytes(range(256)) * 99)", "ended with 0"),
        ("", "ended with 0"),
        ('print(\'{"group":"g","result":"perfect","reason":""}\')', "perfect"),
    ],
)
def test_poll_child_that_dies_or_talks_nonsense_has_failed(
    tmp_path: Path, scripted: object, script: str, told: str
) -> None:
    """Whatever the child leaves behind, the outcome is a failed round with what it said last."""
    scripted(script)  # type: ignore[operator]
    trainer = Trainer(tmp_path)
    trainer.start(request(tmp_path), 0.0)
    outcome = outcome_of(trainer)
    assert (outcome.group, outcome.result) == ("g", "failed")
    assert told in outcome.reason


def test_poll_outcome_is_the_last_line_and_output_is_kept(tmp_path: Path, scripted: object) -> None:
    """What the child prints before its outcome lands in the log file, where people can read it."""
    good = msgspec.json.encode(TrainOutcome("g", "promoted", "fine", "abc", 1.5)).decode()
    scripted(f"import sys; print('epoch 1'); print('warn', file=sys.stderr); print({good!r})")  # type: ignore[operator]
    trainer = Trainer(tmp_path)
    trainer.start(request(tmp_path), 0.0)
    assert outcome_of(trainer) == TrainOutcome("g", "promoted", "fine", "abc", 1.5)
    assert "epoch 1" in (tmp_path / LOG_NAME).read_text()
    assert "warn" in (tmp_path / LOG_NAME).read_text()


def test_start_child_gets_the_request_and_one_thread(tmp_path: Path, scripted: object) -> None:
    """The request arrives whole on standard input, and numerical libraries are told to use one thread."""
    script = (
        "import sys, os, json; r = json.load(sys.stdin); "
        "print(json.dumps({'group': r['group'], 'result': 'rejected', 'reason': os.environ['OMP_NUM_THREADS']"
        " + ' ' + str(r['max_rows'])}))"
    )
    scripted(script)  # type: ignore[operator]
    trainer = Trainer(tmp_path)
    trainer.start(request(tmp_path, max_rows=123), 0.0)
    assert outcome_of(trainer).reason == "1 123"


def test_stop_ends_the_child(tmp_path: Path, scripted: object) -> None:
    """A stopped trainer leaves no process behind."""
    scripted("import time; time.sleep(600)")  # type: ignore[operator]
    trainer = Trainer(tmp_path)
    trainer.start(request(tmp_path), 0.0)
    assert trainer._child is not None
    pid = trainer._child.pid
    trainer.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert trainer.group is None


@pytest.mark.parametrize("budget", [Budget(), Budget(per_second=0.25), Budget(per_reading=2e-4)])
def test_request_reaches_the_child_as_it_was_made(budget: Budget, tmp_path: Path) -> None:
    """What goes over the pipe is the same request on the other side, the budget's kind included."""
    sent = request(tmp_path, budget=budget, before_s=2.5)
    assert msgspec.json.decode(msgspec.json.encode(sent), type=TrainRequest) == sent
