"""The part of test_systemd_boot that runs inside the booted container: drives systemd, writes what it saw.

Runs as a script of the container's own, as root. Each step adds one entry to the report; one that fails
leaves its error there, and the tests outside judge.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path("/opt/test")
CONFIG = Path("/etc/gruard/gruard.toml")
HOST = "127.0.0.1"  # there is no /etc/hosts that knows another name for it
UNIT = "gruard.service"
DROP_IN = Path("/run/systemd/system/gruard.service.d/test.conf")
#: Short enough to be waited for. The unit's own 30 s are too long for a test.
WATCHDOG_S = 3


def run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if check and done.returncode:
        raise RuntimeError(f"{command}: {done.returncode} {done.stdout} {done.stderr}")
    return done.stdout


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.05)


def show(unit: str = UNIT) -> dict[str, str]:
    """Properties of a unit."""
    names = "ActiveState,SubState,StatusText,MainPID,NRestarts,Result,ExecMainStatus"
    lines = run("systemctl", "show", "-p", names, unit).splitlines()
    return dict(line.split("=", 1) for line in lines)


def get(path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(HOST, 9109, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except OSError as error:
        return 0, str(error)
    finally:
        connection.close()


def sample(name: str) -> float:
    for line in get("/metrics")[1].splitlines():
        if line.rpartition(" ")[0] == name:
            return float(line.rpartition(" ")[2])
    return 0.0


def scored() -> float:
    return sample('gruard_readings_total{result="scored"}')


def publish(count: int) -> None:
    """Readings of one device, over the broker, as that device."""
    lines = "".join(f'{{"a": {n % 7}, "b": {n % 5}}}\n' for n in range(count))
    login = ["-u", "press-1", "-P", "password of press-1"]
    subprocess.run(
        ["mosquitto_pub", "-h", HOST, "-t", "sensors/press-1", "-q", "1", "-l", *login],
        input=lines.encode(),
        check=True,
        timeout=30,
    )


def readings_of_device() -> int:
    rows = json.loads(run("/opt/gruard/bin/gruard", "devices", "list", "--json", "-c", str(CONFIG)))
    return int(rows[0]["readings"])


def wait_ready() -> None:
    wait_until(lambda: get("/readyz")[0] == 200, f"ready: {get('/readyz')} {show()}")


@contextlib.contextmanager
def broker() -> Iterator[None]:
    process = subprocess.Popen(["/usr/sbin/mosquitto", "-c", str(HERE / "mosquitto.conf")])
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


def start_without_broker() -> dict[str, Any]:
    """The unit becomes active though nothing listens yet, and says what it waits for."""
    run("systemctl", "start", UNIT)
    wait_until(lambda: "broker" in show()["StatusText"], "a status that names the broker")
    return {"unit": show(), "ready": get("/readyz"), "health": get("/healthz")}


def become_ready() -> dict[str, Any]:
    """With the broker up, the password from the credential store lets it in."""
    wait_ready()
    wait_until(lambda: show()["StatusText"] == "ready", "the status ready")
    pid = int(show()["MainPID"])
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    words = {line.split(":")[0]: line.split()[1:] for line in status}
    state = Path("/var/lib/private/gruard")
    return {
        "unit": show(),
        "uid": int(words["Uid"][0]),
        "capabilities": words["CapEff"][0],
        "no_new_privileges": words["NoNewPrivs"][0],
        "seccomp": words["Seccomp"][0],
        "state_mode": oct(state.stat().st_mode & 0o777),
        "database_mode": oct((state / "gruard.db").stat().st_mode & 0o777),
        "resident_bytes": sample("process_resident_memory_bytes"),
    }


def score_readings() -> dict[str, Any]:
    publish(50)
    wait_until(lambda: scored() >= 50, "50 readings scored")
    return {"scored": scored()}


def survive_kill() -> dict[str, Any]:
    before = int(show()["NRestarts"])
    os.kill(int(show()["MainPID"]), signal.SIGKILL)
    wait_until(lambda: int(show()["NRestarts"]) > before, "a restart")
    wait_ready()
    publish(10)
    wait_until(lambda: scored() >= 10, "10 more readings scored")
    return {"restarts": int(show()["NRestarts"]) - before, "unit": show()}


def survive_hang() -> dict[str, Any]:
    """A stopped process does not feed the watchdog."""
    DROP_IN.parent.mkdir(parents=True)
    DROP_IN.write_text(f"[Service]\nWatchdogSec={WATCHDOG_S}\nRestartSec=100ms\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", UNIT)
    wait_ready()
    quiet = show()
    time.sleep(1.5 * WATCHDOG_S)
    fed = show()
    os.kill(int(fed["MainPID"]), signal.SIGSTOP)
    wait_until(lambda: int(show()["NRestarts"]) > int(fed["NRestarts"]), "a restart by the watchdog")
    wait_ready()
    return {"fed": quiet["MainPID"] == fed["MainPID"], "log": run("journalctl", "-u", UNIT, "--no-pager")}


def stop_clean() -> dict[str, Any]:
    run("systemctl", "stop", UNIT)
    login = ["-u", "operator", "-P", "password of operator"]
    said = run("mosquitto_sub", "-h", HOST, "-t", "gruard/status", "-C", "1", "-W", "10", *login).strip()
    return {"unit": show(), "status_topic": said, "readings": readings_of_device()}


def refuse_bad_configuration() -> dict[str, Any]:
    good = CONFIG.read_text()
    CONFIG.write_text(good + "\n[mqttt]\n")
    try:
        run("systemctl", "reset-failed", UNIT, check=False)
        run("systemctl", "start", UNIT, check=False)
        wait_until(lambda: show()["ActiveState"] == "failed", f"failed: {show()}")
        time.sleep(1)
        return {"unit": show(), "log": run("journalctl", "-u", UNIT, "-n", "20", "--no-pager", "-o", "cat")}
    finally:
        CONFIG.write_text(good)


def start_without_password() -> dict[str, Any]:
    """A broker that asks for none needs no credential; its absence must not stop the unit."""
    stored = Path("/etc/credstore/mqtt_password")
    kept = stored.rename("/etc/credstore/other")
    try:
        run("systemctl", "reset-failed", UNIT, check=False)
        run("systemctl", "start", UNIT)
        return {"unit": show()}
    finally:
        run("systemctl", "stop", UNIT)
        kept.rename(stored)


def train_in_the_sandbox() -> dict[str, Any]:
    """What the training child does, under every restriction of the unit."""
    text = Path("/etc/systemd/system", UNIT).read_text()
    probe = text.replace("/opt/gruard/bin/gruard run -c /etc/gruard/gruard.toml", "/opt/gruard/bin/probe")
    probe = probe.replace("Type=notify", "Type=oneshot").replace("Restart=always", "Restart=no")
    Path("/run/systemd/system/probe.service").write_text(probe)
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "probe.service", check=False)
    return {
        "unit": show("probe.service"),
        "log": run("journalctl", "-u", "probe.service", "--no-pager", "-o", "cat"),
    }


def journal() -> dict[str, Any]:
    lines = run("journalctl", "-u", UNIT, "-o", "json", "--no-pager").splitlines()
    entries = [json.loads(line) for line in lines]
    ours = [entry for entry in entries if entry.get("_EXE", "").startswith("/opt/python/")]
    return {"lines": [[entry["PRIORITY"], entry["MESSAGE"]] for entry in ours]}


def main() -> None:
    report: dict[str, Any] = {}

    def step(function: Callable[[], dict[str, Any]]) -> None:
        began = time.monotonic()
        try:
            report[function.__name__] = function()
        except Exception:  # noqa: BLE001 -- the tests outside show it
            report[function.__name__] = {"error": traceback.format_exc() + run("journalctl", "-n", "60")}
        report[function.__name__]["seconds"] = round(time.monotonic() - began, 1)

    step(start_without_broker)
    with broker():
        for function in (become_ready, score_readings, survive_kill, survive_hang, stop_clean):
            step(function)
    for function in (refuse_bad_configuration, start_without_password, train_in_the_sandbox, journal):
        step(function)
    Path(sys.argv[1]).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
