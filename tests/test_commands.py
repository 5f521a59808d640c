"""Commands of people, by MQTT and as files: carried out once, durable before they are answered."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from fuzz.models import sealed, sound_tensors
from support_daemon import Daemon
from support_engine import plant_rows, readings_of
from support_mqtt import Mosquitto, free_port, publish, wait_until
from support_pipeline import UNTRAINED, opened, play, scores

from gruard.daemon.cli import main
from gruard.daemon.commands import Commands
from gruard.daemon.core import commands as core
from gruard.daemon.core.commands import Activate, CommandError, Pause, Rollback, TrainNow
from gruard.daemon.edges import command_files
from gruard.daemon.edges.metrics import Metrics
from gruard.daemon.edges.trainer import MODELS
from gruard.daemon.records import Delivery, Message
from gruard.models import weights

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gruard.daemon.pipeline import Pipeline
    from gruard.models.weights import ModelPackage


def test_decode_reads_what_encode_writes() -> None:
    """Each command survives the way through a file."""
    for command in (Activate("ab"), Rollback(), Rollback("g"), TrainNow("g"), Pause()):
        assert core.decode(core.encode(command)) == command


def test_decode_on_the_train_topic_needs_no_do() -> None:
    """`{}` or nothing on <base>/cmd/train begins a round."""
    assert core.decode(b"", "train") == TrainNow()
    assert core.decode(b'{"group": "g"}', "train") == TrainNow("g")
    assert core.decode(b'{"do": "pause"}', "train") == Pause()


@pytest.mark.parametrize(
    ("payload", "topic", "reason"),
    [
        (b"{}", "mute", "unknown_command"),
        (b'{"do": "activate", "model": "a"}', "train", "unknown_command"),
        (b'{"do": 1}', "models", "unknown_command"),
        (b"{}", "models", "unknown_command"),
        (b'{"do": "activate"}', "models", "bad_fields"),
        (b'{"do": "activate", "model": 7}', "models", "bad_fields"),
        (b'{"do": "pause", "for": "1h"}', None, "bad_fields"),
        (b"[1]", "train", "not_json"),
        (b"\xff\xfe", "train", "not_json"),
        (b"[" * 4000, "train", "not_json"),
        (b" " * 5000, "train", "too_large"),
    ],
)
def test_decode_bad_payload_is_refused_with_a_reason(payload: bytes, topic: str | None, reason: str) -> None:
    """Whatever is sent ends as a command or as one of the known refusals."""
    with pytest.raises(CommandError) as refused:
        core.decode(payload, topic)
    assert refused.value.reason == reason
    assert reason in core.REFUSALS


# -- carried out -----------------------------------------------------------------------------------

SHOWN = 260
ROWS = plant_rows(SHOWN + 60, fields=2)


def two_models() -> tuple[ModelPackage, ModelPackage]:
    tensors = sound_tensors()
    return sealed(tensors), sealed(tensors | {"gate": tensors["gate"] * 0.5})


def with_models(pipeline: Pipeline, folder: Path) -> tuple[str, str, str]:
    """A group with two models that took charge one after the other: its name, the old one, the live one."""
    play(pipeline, readings_of("a", ROWS[:SHOWN]))
    (folder / MODELS).mkdir(exist_ok=True)
    for package in two_models():
        weights.write(folder / MODELS, package)
        pipeline.adopt(package, "better")
    (group,) = pipeline.models
    return group, *(package.manifest.id for package in two_models())


class Desk:
    """The commands of a pipeline with their metrics."""

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        self.metrics = Metrics(version="test")
        self.commands = Commands(pipeline, folder, "gruard", self.metrics)

    def send(self, topic: str, payload: bytes, *, retain: bool = False, again: bool = False) -> None:
        message = Message(f"gruard/cmd/{topic}", payload, 0.0, qos=1, retain=retain, packet_id=1)
        assert self.commands.is_one(message)
        self.commands.take(message, Delivery(1, 1, b"12345678"), again=again)
        self.commands.apply()

    def give(self, folder: Path, payload: bytes) -> dict[str, str]:
        name = command_files.put(folder, payload, 1_700_000_000.0)
        self.commands.look()
        self.commands.apply()
        answer = command_files.reply(folder, name)
        assert answer is not None
        return dict(json.loads(answer))

    def counted(self, command: str, result: str) -> bool:
        series = f'gruard_commands_total{{command="{command}",result="{result}"}} 1.0'
        return series in self.metrics.render().decode()


def statuses(pipeline: Pipeline) -> dict[str, str]:
    return {row.id: row.status for row in pipeline.database.models()}


def test_rollback_puts_the_model_before_in_charge_within_one_batch(tmp_path: Path) -> None:
    """The next reading is scored by the other model, as in a pipeline where that one never left."""
    with opened(tmp_path / "a", UNTRAINED) as pipeline:
        group, old, live = with_models(pipeline, tmp_path / "a")
        desk = Desk(pipeline, tmp_path / "a")
        desk.send("models", b'{"do": "rollback"}')
        assert desk.counted("rollback", "done")
        assert pipeline.models[group].id == pipeline.engine.groups[group].model == old
        assert statuses(pipeline) == {old: "live", live: "rolled_back"}
        rolled = scores(play(pipeline, readings_of("a", ROWS[SHOWN:], start_s=1000.0 + SHOWN)))
    with opened(tmp_path / "b", UNTRAINED) as pipeline:
        play(pipeline, readings_of("a", ROWS[:SHOWN]))
        (tmp_path / "b" / MODELS).mkdir()
        weights.write(tmp_path / "b" / MODELS, two_models()[0])
        pipeline.adopt(two_models()[0], "better")
        assert scores(
            play(pipeline, readings_of("a", ROWS[SHOWN:], start_s=1000.0 + SHOWN))
        ) == pytest.approx(rolled, abs=1e-6)


def test_rollback_survives_a_restart(tmp_path: Path) -> None:
    """What was committed with the rollback is what a new process finds, and it scores alike."""
    with opened(tmp_path, UNTRAINED) as pipeline:
        group, old, live = with_models(pipeline, tmp_path)
        Desk(pipeline, tmp_path).send("models", b'{"do": "rollback"}')
    with opened(tmp_path, UNTRAINED) as pipeline:
        assert pipeline.models[group].id == old
        assert statuses(pipeline) == {old: "live", live: "rolled_back"}


def test_rollback_without_a_model_before_goes_to_the_baseline(tmp_path: Path) -> None:
    """Rolled back twice, a group with two models is the baseline's, over a restart too."""
    with opened(tmp_path, UNTRAINED) as pipeline:
        group, old, live = with_models(pipeline, tmp_path)
        desk = Desk(pipeline, tmp_path)
        for _ in range(2):
            desk.send("models", b'{"do": "rollback"}')
        assert pipeline.models == {}
        assert statuses(pipeline) == {old: "rolled_back", live: "rolled_back"}
        desk.send("models", b'{"do": "rollback"}')
        assert desk.counted("rollback", "no_such_group")
        play(pipeline, readings_of("a", ROWS[SHOWN:], start_s=1000.0 + SHOWN))
    with opened(tmp_path, UNTRAINED) as pipeline:
        assert pipeline.models == {}
        assert pipeline.engine.groups[group].model == "baseline"


def test_activate_by_the_start_of_an_id(tmp_path: Path) -> None:
    """A retired model takes charge again; one that nobody knows is refused and counted."""
    with opened(tmp_path, UNTRAINED) as pipeline:
        group, old, live = with_models(pipeline, tmp_path)
        desk = Desk(pipeline, tmp_path)
        answer = desk.give(tmp_path, core.encode(Activate(old[:6])))
        assert answer["result"] == "done"
        assert pipeline.models[group].id == old
        assert statuses(pipeline) == {old: "live", live: "retired"}
        assert desk.give(tmp_path, core.encode(Activate("zz")))["result"] == "no_such_model"
        (tmp_path / MODELS / f"{live}.safetensors").unlink()
        assert desk.give(tmp_path, core.encode(Activate(live)))["result"] == "unusable"
        assert pipeline.models[group].id == old


def test_command_delivered_twice_or_retained_changes_nothing(tmp_path: Path) -> None:
    """A redelivery and a stored copy are counted, not carried out."""
    with opened(tmp_path, UNTRAINED) as pipeline:
        group, _, live = with_models(pipeline, tmp_path)
        desk = Desk(pipeline, tmp_path)
        desk.send("models", b'{"do": "rollback"}', retain=True)
        desk.send("models", b'{"do": "rollback"}', again=True)
        assert pipeline.models[group].id == live
        assert desk.counted("unknown", "retained")
        assert desk.counted("unknown", "duplicate")


def test_command_file_left_by_a_crash_is_not_carried_out_twice(tmp_path: Path) -> None:
    """Committed, then killed before the file was removed: the next start only answers."""
    with opened(tmp_path, UNTRAINED) as pipeline:
        group, old, _ = with_models(pipeline, tmp_path)
        name = command_files.put(tmp_path, core.encode(Rollback()), 1_700_000_000.0)
        content = (tmp_path / command_files.FOLDER / name).read_bytes()
        desk = Desk(pipeline, tmp_path)
        desk.commands.look()
        desk.commands.apply()
    (tmp_path / command_files.FOLDER / name).write_bytes(content)
    command_files.reply(tmp_path, name)
    with opened(tmp_path, UNTRAINED) as pipeline:
        desk = Desk(pipeline, tmp_path)
        desk.commands.look()
        desk.commands.apply()
        assert pipeline.models[group].id == old
        assert command_files.reply(tmp_path, name) is not None
        assert not (tmp_path / command_files.FOLDER / name).exists()


def test_paused_training_stays_paused_over_a_restart(tmp_path: Path) -> None:
    """No round begins until training is resumed."""
    with opened(tmp_path, UNTRAINED) as pipeline:
        Desk(pipeline, tmp_path).send("train", b'{"do": "pause"}')
    with opened(tmp_path, UNTRAINED) as pipeline:
        assert pipeline.rounds.paused
        Desk(pipeline, tmp_path).send("train", b'{"do": "resume"}')
    with opened(tmp_path, UNTRAINED) as pipeline:
        assert not pipeline.rounds.paused


def test_foreign_files_are_set_aside_and_counted_once(tmp_path: Path) -> None:
    """Pipes, links, folders, large and oddly named files neither stop nor hold the worker."""
    with opened(tmp_path, UNTRAINED) as pipeline:
        desk = Desk(pipeline, tmp_path)
        folder = tmp_path / command_files.FOLDER
        good = command_files.put(tmp_path, core.encode(Pause()), 1_700_000_009.0)
        os.mkfifo(folder / "1700000000000000000-00000001.json")
        (folder / "1700000000000000000-00000002.json").symlink_to(tmp_path / "gruard.db")
        (folder / "1700000000000000000-00000003.json").mkdir()
        (folder / "1700000000000000000-00000004.json").write_bytes(b" " * 10_000)
        (folder / "notes.txt").write_text("hello", "utf-8")
        for _ in range(2):
            desk.commands.look()
            desk.commands.apply()
        assert 'command="unknown",result="unreadable"} 5.0' in desk.metrics.render().decode()
        assert pipeline.rounds.paused
        assert {path.name for path in folder.iterdir()} == {command_files.REFUSED, f"{good}.answer"}
        assert len(list((folder / command_files.REFUSED).iterdir())) == 5


# -- the whole daemon ------------------------------------------------------------------------------


@pytest.mark.broker
def test_daemon_obeys_files_and_messages_alike(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """The same commands by the command line and by MQTT; none of them is counted as a reading."""
    with Daemon(tmp_path, mosquitto.port) as daemon:
        done = daemon.run("train", "--pause")
        assert (done.returncode, done.stdout) == (0, "training is paused\n"), done.stderr
        refused = daemon.run("models", "rollback")
        assert refused.returncode == 70
        assert "no_such_group" in refused.stderr
        assert "Traceback" not in refused.stderr
        publish(mosquitto.port, "gruard/cmd/train", '{"do": "resume"}')
        publish(mosquitto.port, "gruard/cmd/models", "no JSON")
        counted = (
            'gruard_commands_total{command="resume",result="done"}',
            'gruard_commands_total{command="unknown",result="not_json"}',
        )
        assert wait_until(lambda: all(name in daemon.get("/metrics")[1] for name in counted)), daemon.log()
        assert daemon.metric("gruard_readings_received_total") == 0
        assert daemon.metric("gruard_messages_received_total") == 2


def test_command_without_a_daemon_waits_for_its_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line says so and succeeds; the file is there for the next start."""
    monkeypatch.setattr("gruard.daemon.cli_commands.ANSWER_S", 0.2)
    state = tmp_path / "state"
    state.mkdir()
    (tmp_path / "gruard.toml").write_text(f'version = 1\n[state]\ndirectory = "{state}"\n', "utf-8")
    assert main(["train", "--pause", "-c", str(tmp_path / "gruard.toml")]) == 0
    assert "next start" in capsys.readouterr().out
    with opened(state, UNTRAINED) as pipeline:
        desk = Desk(pipeline, state)
        desk.commands.look()
        desk.commands.apply()
        assert pipeline.rounds.paused


@pytest.mark.parametrize(
    "failpoint", ["model.before:1", "model.after:1", "commit.before:1", "commit.after:1"]
)
def test_rollback_survives_kill_at_any_point_and_happens_once(tmp_path: Path, failpoint: str) -> None:
    """A daemon killed while it rolls back ends, after its next start, one model back and not two."""
    port = free_port()  # nobody listens there: commands as files need no broker
    daemon = Daemon(tmp_path, port)
    with opened(daemon.state, UNTRAINED) as pipeline:
        _, old, live = with_models(pipeline, daemon.state)
        pipeline.checkpoint()
    command_files.put(daemon.state, core.encode(Rollback()), 1_700_000_000.0)
    try:
        with suppress(AssertionError):  # it may be gone before it answers
            daemon.start(ready=False, environ={"GRUARD_FAILPOINT": failpoint})
        assert wait_until(lambda: not daemon.alive, 30), daemon.log()
    finally:
        daemon.__exit__()
    folder = daemon.state / command_files.FOLDER
    with killed_later(daemon):
        assert wait_until(lambda: not list(folder.glob("*.json")), 30), daemon.log()
        rows = json.loads(daemon.run("models", "list", "--json").stdout)
    assert {row["id"]: row["state"] for row in rows} == {old: "live", live: "rolled_back"}


@contextmanager
def killed_later(daemon: Daemon) -> Iterator[None]:
    """A daemon that need not be ready, ended by SIGKILL."""
    daemon.start(ready=False)
    try:
        yield
    finally:
        daemon.__exit__()
