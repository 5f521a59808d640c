"""The whole daemon against a real broker, seen from outside."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support_daemon import Daemon
from support_engine import plant_rows
from support_mqtt import Mosquitto, Subscriber, free_port, publish, wait_until
from support_payloads import HOSTILE, LIMIT_BYTES
from test_payloads import CONTRACT

from gruard.daemon.edges.broker import Publisher

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

pytestmark = pytest.mark.broker

START_S = 1_600_000_000.0


@pytest.fixture
def daemon(tmp_path: Path, mosquitto: Mosquitto) -> Iterator[Daemon]:
    with Daemon(tmp_path, mosquitto.port) as running:
        yield running


def payload(row: np.ndarray, time_s: float) -> str:
    return json.dumps({"ts": time_s, **{f"f{k}": float(v) for k, v in enumerate(row)}})


def payloads(rows: np.ndarray, start_s: float = START_S) -> list[str]:
    return [payload(row, start_s + t) for t, row in enumerate(rows)]


def faulty(n: int = 840, at: int = 560, length: int = 60) -> np.ndarray:
    rows = plant_rows(n)
    rows[at : at + length, 1] += 15.0
    return rows


def alerts_of(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line.split(" ", 1)[1]) for line in lines if "/alerts/" in line.split(" ", 1)[0]]


def write_recording(path: Path, rows: np.ndarray) -> None:
    with path.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["ts", *(f"f{k}" for k in range(rows.shape[1]))])
        writer.writerows([START_S + t, *map(float, row)] for t, row in enumerate(rows))


def test_run_fault_in_replayed_recording_ends_as_contract_valid_alert_and_replay_agrees(
    tmp_path: Path, mosquitto: Mosquitto, daemon: Daemon
) -> None:
    """A foreign client plays a recording; the alert fits the contract, and `gruard replay` gives the same."""
    rows = faulty()
    with Subscriber(mosquitto.port, "gruard/#") as heard:
        publish(mosquitto.port, "plant/pump-1", *payloads(rows))
        assert daemon.settled(len(rows)), daemon.log()
        assert wait_until(lambda: any(a["state"] == "resolved" for a in alerts_of(heard.lines))), daemon.log()
        live = alerts_of(heard.lines)
        told = dict(line.split(" ", 1) for line in heard.lines)
    assert wait_until(lambda: daemon.metric('gruard_devices{state="ready"}') == 1)
    assert daemon.metric('gruard_retrain_total{result="promoted"}') == 1
    for alert in live:
        assert list(alert) == CONTRACT
        assert alert["schema"] == "gruard.alert/1"
        assert 0 <= alert["score"] <= 1
        assert sum(part["share"] for part in alert["contributions"]) == pytest.approx(1)
    assert live[0]["state"] == "opened"
    assert live[0]["contributions"][0]["field"] == "f1"
    assert live[0]["model"]["trained_at"] is not None
    state = json.loads(told["gruard/state/pump-1"])
    assert state["state"] == "ready"
    write_recording(tmp_path / "recording.csv", rows)
    # Following the models of the live run, and training anew as a daemon without any would.
    assert replayed(daemon, tmp_path / "recording.csv", "pump-1") == live
    for alert in live:
        del alert["model"]["trained_at"]  # the one thing that is of its own moment
    anew = replayed(daemon, tmp_path / "recording.csv", "pump-1", "--fresh")
    for alert in anew:
        del alert["model"]["trained_at"]
    assert anew == live


def test_replay_second_device_follows_the_model_it_joined(
    tmp_path: Path, mosquitto: Mosquitto, daemon: Daemon
) -> None:
    """A device that came after the switch is replayed under the model that was live, as it was seen live."""
    publish(mosquitto.port, "plant/pump-1", *payloads(plant_rows(450)))
    assert daemon.settled(450), daemon.log()
    rows = faulty(520, 420, 40)
    with Subscriber(mosquitto.port, "gruard/alerts/pump-2", "%t %p") as heard:
        publish(mosquitto.port, "plant/pump-2", *payloads(rows))
        assert daemon.settled(450 + len(rows)), daemon.log()
        heard.wait_for(1)
        time.sleep(1.0)
        live = alerts_of(heard.lines)
    write_recording(tmp_path / "recording.csv", rows)
    assert replayed(daemon, tmp_path / "recording.csv", "pump-2") == live


def replayed(daemon: Daemon, path: Path, device: str, *options: str) -> list[dict[str, Any]]:
    done = daemon.run("replay", str(path), "--device", device, *options)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_run_hostile_payloads_between_good_readings_change_nothing(
    tmp_path: Path,
) -> None:
    """10,000 hostile payloads: no restart, no traceback, all counted; good readings score as without them."""
    rows = plant_rows(200)
    hostile = [body for _, body in HOSTILE if len(body) <= LIMIT_BYTES // 8]
    # Debian's broker drops what it cannot queue (1,000 messages) and tells nobody.
    broker = Mosquitto(tmp_path, ["max_queued_messages 100000"])
    with broker, Daemon(tmp_path, broker.port) as daemon:
        pid, sent = daemon.pid, 0
        with Publisher("127.0.0.1", broker.port, "hostile") as publisher:
            for t, good in enumerate(payloads(rows)):
                publisher.publish("plant/clean", good.encode(), qos=1)
                publisher.publish("plant/dirty", good.encode(), qos=1)
                for n in range(25):
                    body = hostile[(25 * t + n) % len(hostile)]
                    publisher.publish("plant/dirty", body, qos=1)
                    publisher.publish("raw/dirty-raw", body, qos=1)
                sent += 52
            publisher.wait_all(60)
        received = "gruard_messages_received_total"
        assert wait_until(lambda: daemon.metric(received) == sent, 120), daemon.log()
        assert wait_until(lambda: daemon.accounted() == daemon.metric("gruard_readings_received_total"), 30)
        page, devices = daemon.get("/metrics")[1], daemon.devices()
        rejected = daemon.metric('gruard_readings_total{result="rejected"}')
        assert sent == 10_400
        assert daemon.pid == pid
        assert daemon.alive
        assert "Traceback" not in daemon.log()
    reasons = [line for line in page.splitlines() if line.startswith("gruard_decode_errors_total{")]
    assert sum(float(line.rsplit(" ", 1)[1]) for line in reasons) == rejected > 9_000
    assert devices["dirty"]["readings"] == devices["clean"]["readings"] == 200
    assert devices["dirty"]["score"] == devices["clean"]["score"]
    assert devices["dirty"]["group"] == devices["clean"]["group"]


def test_run_metrics_pass_promtool(daemon: Daemon, mosquitto: Mosquitto) -> None:
    """Prometheus' own linter accepts the page of a running daemon."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (Debian package prometheus) is not installed")
    publish(mosquitto.port, "plant/pump-1", *payloads(plant_rows(60)))
    assert daemon.settled(60)
    page = daemon.get("/metrics")[1]
    done = subprocess.run(
        [promtool, "check", "metrics"], input=page, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_run_http_answers_ready_healthy_and_404(daemon: Daemon) -> None:
    """Readiness and health answer 200, everything unknown 404."""
    assert daemon.get("/readyz")[0] == 200
    assert json.loads(daemon.get("/readyz")[1]) == {"ready": True, "reasons": []}
    assert daemon.get("/healthz")[0] == 200
    assert daemon.get("/nothing")[0] == 404
    assert daemon.get("/metrics/x")[0] == 404


def test_run_status_is_retained_and_last_will_speaks_after_kill(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """`online` while it runs, `offline` after a clean stop and after kill -9."""
    daemon = Daemon(tmp_path, mosquitto.port)

    def status() -> str:
        with Subscriber(mosquitto.port, "gruard/status", "%p") as heard:
            return heard.wait_for(1)[0]

    with daemon:
        assert wait_until(lambda: status() == "online")
        assert daemon.stop() == 0
        assert wait_until(lambda: status() == "offline")
        daemon.start()
        assert wait_until(lambda: status() == "online")
        daemon.stop(signal.SIGKILL)
        assert wait_until(lambda: status() == "offline")


def test_run_restart_goes_on_where_it_stopped(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """Stopped cleanly or killed, the daemon counts every reading once and keeps each device's memory."""
    rows = plant_rows(300)
    one, two = Daemon(tmp_path, mosquitto.port), tmp_path / "whole"
    two.mkdir()
    whole = Daemon(two, mosquitto.port)
    whole.config.write_text(whole.config.read_text().replace("gruard-test", "gruard-whole"))
    with one, whole:
        for start, number in ((0, signal.SIGTERM), (100, signal.SIGKILL), (200, None)):
            publish(mosquitto.port, "plant/pump-1", *payloads(rows[start : start + 100], START_S + start))
            # At least: what was scored and not yet committed before a kill is scored once more after it.
            assert wait_until(lambda: one.accounted() >= 100, 90), one.log()
            if number is not None:
                one.stop(number)
                one.start()
        assert whole.settled(300)
        assert wait_until(lambda: one.devices()["pump-1"]["readings"] == 300)
        again, uninterrupted = one.devices()["pump-1"], whole.devices()["pump-1"]
    assert again["readings"] == uninterrupted["readings"] == 300
    assert again["score"] == pytest.approx(uninterrupted["score"], abs=1e-4)
    assert again["state"] == uninterrupted["state"]


def test_run_messages_sent_while_away_are_scored_after_the_return(
    tmp_path: Path, mosquitto: Mosquitto
) -> None:
    """The persistent session keeps what was published during an outage."""
    daemon = Daemon(tmp_path, mosquitto.port)
    rows = plant_rows(160)
    with daemon:
        publish(mosquitto.port, "plant/pump-1", *payloads(rows[:80]))
        assert daemon.settled(80)
        daemon.stop()
        publish(mosquitto.port, "plant/pump-1", *payloads(rows[80:], START_S + 80))
        daemon.start()
        assert daemon.settled(80), daemon.log()
        assert wait_until(lambda: daemon.devices()["pump-1"]["readings"] == 160)


def test_run_topic_that_names_the_field_builds_one_device(mosquitto: Mosquitto, daemon: Daemon) -> None:
    """Plain numbers on one topic a field become the fields of one device."""
    for t in range(40):
        publish(mosquitto.port, "single/room/temperature", f"{20 + t % 3}")
        publish(mosquitto.port, "single/room/humidity", f"{40 + t % 5}")
    assert daemon.settled(80)
    assert wait_until(lambda: daemon.devices()["room"]["readings"] == 80)
    with Subscriber(mosquitto.port, "gruard/state/room", "%p") as heard:
        assert set(json.loads(heard.wait_for(1)[0])["value"]) == {"temperature", "humidity"}


def test_run_retained_messages_are_not_readings(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """A stored copy delivered on subscribing is counted and not scored."""
    publish(mosquitto.port, "plant/pump-1", payloads(plant_rows(1))[0], options=["-r"])
    with Daemon(tmp_path, mosquitto.port) as daemon:
        assert wait_until(lambda: daemon.metric('gruard_decode_errors_total{reason="retained"}') == 1)
        assert daemon.metric('gruard_readings_total{result="scored"}') == 0


def test_run_broker_absent_is_said_and_healed(tmp_path: Path) -> None:
    """Without a broker the daemon lives, says why it is not ready, and connects once there is one."""
    broker = Mosquitto(tmp_path)
    daemon = Daemon(tmp_path, broker.port)
    try:
        daemon.start(ready=False)
        assert wait_until(lambda: "broker" in daemon.get("/readyz")[1])
        assert daemon.get("/readyz")[0] == 503
        assert daemon.metric("gruard_mqtt_connected") == 0
        broker.start()
        assert wait_until(lambda: daemon.get("/readyz")[0] == 200, 40), daemon.log()
        assert daemon.stop() == 0
    finally:
        daemon.__exit__()
        broker.kill()


def test_run_second_daemon_on_the_same_state_is_refused(
    tmp_path: Path, mosquitto: Mosquitto, daemon: Daemon
) -> None:
    """Two daemons must not write one database; the second says so without a traceback."""
    done = daemon.run("run")
    assert done.returncode == 70
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 2


def test_run_bad_configuration_exits_78_with_the_place(tmp_path: Path) -> None:
    """A misspelt key costs one line with file, line, key and suggestion, and status 78."""
    config = tmp_path / "bad.toml"
    config.write_text('version = 1\n[mqtt]\nhots = "x"\n[[sources]]\ntopic = "a/{device}"\n')
    command = [sys.executable, "-m", "gruard.daemon"]
    for name in ("run", "check-config"):
        done = subprocess.run(
            [*command, name, "-c", str(config)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 78
        assert f"{config}:3" in done.stderr
        assert "hots" in done.stderr
        assert '"host"' in done.stderr
        assert "Traceback" not in done.stderr


def test_run_scorer_never_imports_torch(daemon: Daemon, mosquitto: Mosquitto) -> None:
    """Even after a training round the running scorer has no torch mapped."""
    publish(mosquitto.port, "plant/pump-1", *payloads(plant_rows(450)))
    assert wait_until(lambda: daemon.metric('gruard_retrain_total{result="promoted"}') == 1, 60), daemon.log()
    assert "torch" not in Path(f"/proc/{daemon.pid}/maps").read_text(encoding="utf-8")


def test_run_silent_device_and_idle_loop_stay_alive(daemon: Daemon) -> None:
    """With nothing to do the daemon stays healthy."""
    time.sleep(1.5)
    assert daemon.get("/healthz")[0] == 200
    assert daemon.metric("gruard_ready") == 1


def test_simulate_publishes_and_daemon_learns(mosquitto: Mosquitto, tmp_path: Path) -> None:
    """`gruard simulate` is a plain MQTT client; what it sends arrives."""
    command = [sys.executable, "-m", "gruard.daemon", "simulate", "--port", str(mosquitto.port)]
    with Subscriber(mosquitto.port, "demo/pumps/#", "%t") as heard:
        done = subprocess.run(
            [*command, "--pumps", "2", "--speed", "10", "--seconds", "2"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert "readings of 2 pumps" in done.stdout
        heard.wait_for(20)
    done = subprocess.run(
        [sys.executable, "-m", "gruard.daemon", "simulate", "--port", str(free_port()), "--seconds", "1"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 75
    assert "Traceback" not in done.stderr


def test_run_stop_while_waiting_for_the_first_model_loses_nothing(
    tmp_path: Path, mosquitto: Mosquitto
) -> None:
    """Messages that were taken and not scored at SIGTERM are not acknowledged: they come again."""
    rows = plant_rows(700)
    with Daemon(tmp_path, mosquitto.port) as daemon:
        publish(mosquitto.port, "plant/pump-1", *payloads(rows))
        assert wait_until(lambda: "training of" in daemon.log(), 30)
        assert daemon.stop() == 0
        daemon.start()
        assert wait_until(lambda: daemon.devices()["pump-1"]["readings"] == 700, 60), daemon.log()
