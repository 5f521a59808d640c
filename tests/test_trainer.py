"""The training child from outside: it may crash, hang or talk nonsense."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from support_mqtt import wait_until

from gruard.daemon.edges import trainer as trainer_module
from gruard.daemon.edges.trainer import LOG_NAME, Trainer, TrainOutcome, TrainRequest
from gruard.models.calibration import Budget


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
    outcome = outcome_of(trainer)
    assert (outcome.result, outcome.reason, outcome.model, outcome.seconds) == (
        "promoted",
        "fine",
        "abc",
        1.5,
    )
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


#: A child that conducts itself as a real one does, and then does what a test asks for.
CONDUCTED = """
import sys, time
import msgspec
from gruard.daemon.edges.trainer import TrainOutcome, TrainRequest
from gruard.daemon.round_conduct import Conduct, OutOfTimeError
request = msgspec.json.decode(sys.stdin.buffer.read(), type=TrainRequest)
conduct = Conduct()
def end(result, reason):
    sys.stdout.buffer.write(msgspec.json.encode(TrainOutcome("g", result, reason)) + b"\\n")
"""


def test_poll_shows_how_far_the_child_says_it_is(tmp_path: Path, scripted: object) -> None:
    """Progress comes as lines among others; one that is not whole yet waits, and nonsense is no progress."""
    scripted(  # type: ignore[operator]
        CONDUCTED
        + "print('a warning'); conduct.tell('reading', 0.1); conduct.tell('fitting', 0.52)\n"
        + "print('{\"type\":\"progress\"', end='', flush=True); time.sleep(60)"
    )
    trainer, now = Trainer(tmp_path), [0.0]
    trainer.start(request(tmp_path, max_seconds=1e9), 0.0)

    def told() -> bool:
        now[0] += 1.0
        assert trainer.poll(now[0]) is None
        return trainer.progress is not None and trainer.progress.stage == "fitting"

    assert wait_until(told, 30)
    assert trainer.progress is not None
    assert trainer.progress.done == 0.52
    trainer.stop()
    assert trainer.progress is None


def test_poll_round_beyond_its_processor_time_is_a_timeout(tmp_path: Path, scripted: object) -> None:
    """The child hears of it, ends in order and says so; what it used is told with the outcome."""
    scripted(  # type: ignore[operator]
        CONDUCTED
        + "try:\n    while True: sum(range(999))\n"
        + "except OutOfTimeError as error: end('timeout', f'in order: {error}')"
    )
    trainer = Trainer(tmp_path)
    trainer.start(request(tmp_path, max_cpu_s=4.0), 0.0)
    outcome = outcome_of(trainer)
    assert (outcome.result, outcome.reason) == ("timeout", "in order: out of processor time")
    assert 3.0 < outcome.cpu_s < 9.0


def test_poll_round_that_ignores_the_end_of_its_processor_time_is_ended(
    tmp_path: Path, scripted: object
) -> None:
    """Without the child's help the system ends it, and the reason is told all the same."""
    scripted("while True: pass")  # type: ignore[operator]
    trainer = Trainer(tmp_path)
    trainer.start(request(tmp_path, max_cpu_s=1.0), 0.0)
    outcome = outcome_of(trainer)
    assert outcome.result == "timeout"
    assert "of processor time" in outcome.reason


@pytest.mark.parametrize(
    "script",
    [
        "x = bytearray(400_000_000)",
        "import numpy; numpy.ones(50_000_000)",
        "import torch; torch.set_num_threads(1); torch.ones(100_000_000)",
        "import resource; resource.setrlimit(resource.RLIMIT_DATA, (10**8, 10**8)); import torch",
    ],
)
def test_poll_round_that_needs_more_memory_than_it_may_have_says_so(
    tmp_path: Path, scripted: object, script: str
) -> None:
    """However the want of memory shows, the reason names it."""
    scripted(script)  # type: ignore[operator]
    trainer = Trainer(tmp_path)
    trainer.start(request(tmp_path, max_memory_bytes=350_000_000), 0.0)
    outcome = outcome_of(trainer)
    assert outcome.result == "failed"
    assert "ran out of memory" in outcome.reason


def test_pause_lets_the_child_wait_and_moves_its_deadline(tmp_path: Path, scripted: object) -> None:
    """While paused the child does nothing and its time stands still; afterwards it goes on to its end."""
    ticks = tmp_path / "ticks"
    scripted(  # type: ignore[operator]
        CONDUCTED
        + f"for n in range(40):\n    open({str(ticks)!r}, 'a').write('x'); conduct.tell('t', n / 40);"
        + " time.sleep(0.05)\nend('rejected', 'done')"
    )
    trainer = Trainer(tmp_path)
    trainer.start(request(tmp_path, max_seconds=30.0), 0.0)
    assert wait_until(ticks.exists, 30)
    trainer.pause(10.0)
    time.sleep(0.5)
    stands = ticks.stat().st_size
    time.sleep(0.5)
    assert ticks.stat().st_size == stands < 40
    assert trainer.poll(1000.0) is None
    trainer.go_on(1000.0)
    outcome = outcome_of(trainer, 1019.0)  # 29 s of its own
    assert outcome.reason == "done"
    assert ticks.stat().st_size == 40


def test_poll_asks_again_for_a_pause_that_came_too_early(tmp_path: Path, scripted: object) -> None:
    """A child that was not ready to be asked waits when it is."""
    ticks = tmp_path / "ticks"
    scripted(  # type: ignore[operator]
        CONDUCTED
        + f"while True:\n    open({str(ticks)!r}, 'a').write('x'); conduct.tell('t', 0.5); time.sleep(0.05)"
    )
    trainer = Trainer(tmp_path)
    trainer.start(request(tmp_path, max_seconds=1e9), 0.0)
    trainer.pause(0.0)
    assert wait_until(ticks.exists, 30)
    assert trainer.poll(5.0) is None
    time.sleep(0.3)
    stands = ticks.stat().st_size
    time.sleep(0.5)
    assert ticks.stat().st_size == stands
    trainer.stop()


def test_child_that_waits_ends_when_the_daemon_is_gone(tmp_path: Path) -> None:
    """Nobody would ever wake it: a round whose daemon was killed does not stay behind."""
    parent = (
        "import os, signal, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdin=subprocess.PIPE,"
        " stdout=subprocess.PIPE, start_new_session=True)\n"
        "child.stdout.readline(); os.kill(child.pid, signal.SIGTSTP); time.sleep(0.3)\n"
        "print(child.pid, flush=True); os._exit(0)\n"
    )
    child = (
        "import time\nfrom gruard.daemon import round_conduct\nround_conduct.ORPHAN_S = 0.2\n"
        "conduct = round_conduct.Conduct()\nconduct.tell('ready', 0.0)\ntime.sleep(600)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", parent, child], capture_output=True, text=True, timeout=60, check=True
    )
    pid = int(done.stdout)

    def is_gone() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"

    assert wait_until(is_gone, 30)
