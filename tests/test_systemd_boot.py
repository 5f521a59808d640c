"""The unit in a real systemd: a container booted from this machine's own /usr, without any download.

Needs root, systemd-nspawn, mosquitto and a cgroup v2 hierarchy; skips, and says why, where one is missing.
The container runs support_boot.py once; each test reads one entry of its report.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import gruard.daemon
import gruard.models

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.systemd, pytest.mark.slow, pytest.mark.alone]

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
INSIDE = Path(__file__).with_name("support_boot.py")
BOOT_LIMIT_S = 240

GRUARD = """#!/bin/sh
export LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH=/opt/code:/opt/packages PYTHONDONTWRITEBYTECODE=1
exec {python} -m gruard.daemon "$@"
"""
# What a training round needs of the system: a lower priority, torch's kernels, files in the state directory.
PROBE = """#!/bin/sh
export LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH=/opt/packages PYTHONDONTWRITEBYTECODE=1
exec {python} -c '
import os, pathlib, torch
assert os.nice(19) == 19
cell = torch.nn.GRU(8, 32, batch_first=True)
optimizer = torch.optim.Adam(cell.parameters())
cell(torch.randn(4, 50, 8))[0].square().mean().backward()
optimizer.step()
torch.nn.Conv1d(8, 8, 3)(torch.randn(2, 8, 32))
pathlib.Path(os.environ["STATE_DIRECTORY"], "probe").write_text("written")
try:
    pathlib.Path("/opt/gruard/probe").write_text("escaped")
except OSError as error:
    print("outside:", error.strerror)
print("trained")
'
"""
CONFIG = """version = 1
[mqtt]
username = "gruard"
[[sources]]
topic = "sensors/{device}"
[train]
every = "off"
"""
SELFTEST = """[Unit]
Description=self-test
SuccessAction=exit
FailureAction=exit
FailureActionExitStatus=7
[Service]
Type=oneshot
Environment=LD_LIBRARY_PATH=/opt/python/lib
ExecStart={python} /opt/test/support_boot.py /report/report.json
StandardOutput=file:/report/output
StandardError=inherit
"""
#: Services that Debian would start on a first boot and that are not wanted here.
MASKED = (
    *("systemd-networkd", "systemd-networkd-wait-online", "mosquitto", "prometheus"),
    *("prometheus-node-exporter", "apt-daily", "e2scrub_reap", "systemd-resolved", "systemd-timesyncd"),
)


def cgroup_root() -> Path:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(place)
    pytest.skip("NOT TESTED: the booted container needs a writable cgroup v2 hierarchy")


@pytest.fixture(scope="module")
def cgroup() -> Iterator[Path]:
    """A control group of our own for the container; whatever is left in it is ended."""
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: booting a container needs root")
    for program in ("systemd-nspawn", "mosquitto", "mosquitto_pub", "mosquitto_passwd"):
        if shutil.which(program, path="/usr/bin:/usr/sbin") is None:
            pytest.skip(f"NOT TESTED: {program} is missing (Debian: systemd-container, mosquitto*)")
    group = cgroup_root() / f"gruard-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"NOT TESTED: no control group to be had here: {error}")
    yield group
    folders = sorted([group, *(path for path in group.rglob("*") if path.is_dir())], reverse=True)
    for folder in folders:
        for pid in (folder / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def fill(folder: Path, python: str) -> list[str]:
    """Lay out the container's files; returns the binds that put them in place."""
    code, test, etc, programs = (folder / name for name in ("code", "test", "etc", "programs"))
    for made in (code / "gruard", test, etc, programs, folder / "credstore", folder / "report"):
        made.mkdir(parents=True)
    shutil.copytree(next(iter(gruard.daemon.__path__)), code / "gruard" / "daemon")
    shutil.copytree(next(iter(gruard.models.__path__)), code / "gruard" / "models")
    for name, text in (("gruard", GRUARD), ("probe", PROBE)):
        (programs / name).write_text(text.format(python=python))
        (programs / name).chmod(0o755)
    (etc / "gruard.toml").write_text(CONFIG)
    (folder / "credstore" / "mqtt_password").write_text("password of gruard\n")
    (folder / "credstore" / "mqtt_password").chmod(0o600)
    (folder / "selftest.service").write_text(SELFTEST.format(python=python))
    shutil.copy(INSIDE, test)
    shutil.copy(DEPLOY / "mosquitto.acl", test)
    for user in ("gruard", "operator", "press-1"):
        (test / "passwords").touch(0o600)
        command = ["mosquitto_passwd", "-b", str(test / "passwords"), user, f"password of {user}"]
        subprocess.run(command, check=True)
    shipped = (DEPLOY / "mosquitto.conf").read_text()
    (test / "mosquitto.conf").write_text(
        shipped.replace("/etc/mosquitto/gruard.passwd", "/opt/test/passwords")
        .replace("/etc/mosquitto/gruard.acl", "/opt/test/mosquitto.acl")
        .replace("/var/lib/mosquitto/", "/run/")
        .replace("/run/mosquitto/mosquitto.pid", "/run/mosquitto.pid")
        + "user root\n"
    )
    read_only = {
        sys.base_prefix: "/opt/python",
        sysconfig.get_path("purelib"): "/opt/packages",
        str(code): "/opt/code",
        str(programs): "/opt/gruard/bin",
        str(test): "/opt/test",
        str(DEPLOY / "gruard.service"): "/etc/systemd/system/gruard.service",
        str(folder / "selftest.service"): "/etc/systemd/system/selftest.service",
    }
    writable = {
        str(etc): "/etc/gruard",
        str(folder / "credstore"): "/etc/credstore",
        str(folder / "report"): "/report",
    }
    return [
        *(f"--bind-ro={ours}:{theirs}" for ours, theirs in read_only.items()),
        *(f"--bind={ours}:{theirs}" for ours, theirs in writable.items()),
    ]


@pytest.fixture(scope="module")
def report(cgroup: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What support_boot.py saw inside."""
    folder = tmp_path_factory.mktemp("boot")
    interpreter = Path(sys.executable).resolve().relative_to(Path(sys.base_prefix).resolve())
    binds = fill(folder, f"/opt/python/{interpreter}")
    command = [
        *("sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(cgroup)),
        *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network"),
        *("--volatile=yes", "--directory=/", *binds, "--boot", "systemd.firstboot=no"),
        *(f"systemd.mask={name}.service" for name in MASKED),
        "systemd.wants=selftest.service",
    ]
    environ = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
    output = folder / "console"
    with output.open("wb") as console:
        container = subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
        )
        try:
            status = container.wait(BOOT_LIMIT_S)
        except subprocess.TimeoutExpired:
            status = None
            container.terminate()
            with suppress(subprocess.TimeoutExpired):
                container.wait(20)
    written = folder / "report" / "report.json"
    if not written.exists():
        said = output.read_text(errors="replace")
        if not (folder / "report" / "output").exists():
            pytest.skip(f"NOT TESTED: systemd-nspawn cannot boot a container here ({status}): {said[-2000:]}")
        pytest.fail(f"status {status}\n{(folder / 'report' / 'output').read_text()}\n{said[-2000:]}")
    loaded: dict[str, dict[str, Any]] = json.loads(written.read_text())
    return loaded


@pytest.fixture
def entry(report: dict[str, dict[str, Any]], request: pytest.FixtureRequest) -> dict[str, Any]:
    """The report's entry that the test is named after."""
    found = report[request.node.name.removeprefix("test_unit_").split("_when_")[0]]
    assert "error" not in found, found["error"]
    return found


def test_unit_start_without_broker(entry: dict[str, Any]) -> None:
    """Without a broker the unit is active and healthy, not ready, and says what it waits for."""
    assert entry["unit"]["ActiveState"] == "active"
    assert entry["health"][0] == 200
    assert entry["ready"][0] == 503
    assert "broker" in entry["ready"][1]


def test_unit_become_ready_when_the_broker_is_up(entry: dict[str, Any]) -> None:
    """With the password from the credential store it gets in, as nobody in particular and without powers."""
    assert entry["unit"]["StatusText"] == "ready"
    assert 61184 <= entry["uid"] <= 65519  # systemd's range for dynamic users
    assert int(entry["capabilities"], 16) == 0
    assert (entry["no_new_privileges"], entry["seccomp"]) == ("1", "2")
    assert (entry["state_mode"], entry["database_mode"]) == ("0o750", "0o600")
    assert entry["resident_bytes"] > 1e6


def test_unit_score_readings_when_they_are_published(entry: dict[str, Any]) -> None:
    """Readings of a device with a password of its own are scored."""
    assert entry["scored"] == 50


def test_unit_survive_kill(entry: dict[str, Any]) -> None:
    """After kill -9 systemd starts it again, once, and it goes on."""
    assert entry["restarts"] == 1
    assert entry["unit"]["ActiveState"] == "active"


def test_unit_survive_hang(entry: dict[str, Any]) -> None:
    """A working daemon feeds the watchdog; a hung one is ended by it and started again."""
    assert entry["fed"]
    assert "Watchdog timeout" in entry["log"]


def test_unit_stop_clean(entry: dict[str, Any]) -> None:
    """A stop exits with 0, says goodbye to the broker, and no reading was lost or counted twice."""
    assert (entry["unit"]["ActiveState"], entry["unit"]["Result"]) == ("inactive", "success")
    assert entry["unit"]["ExecMainStatus"] == "0"
    assert entry["status_topic"] == "offline"
    assert entry["readings"] == 60


def test_unit_refuse_bad_configuration(entry: dict[str, Any]) -> None:
    """A wrong configuration ends with 78, is not tried again, and the journal names the key."""
    assert entry["unit"]["ExecMainStatus"] == "78"
    assert entry["unit"]["NRestarts"] == "0"
    assert "mqttt" in entry["log"]
    assert "Traceback" not in entry["log"]


def test_unit_start_without_password(entry: dict[str, Any]) -> None:
    """An absent credential is no reason not to start."""
    assert entry["unit"]["ActiveState"] == "active"


def test_unit_train_in_the_sandbox(entry: dict[str, Any]) -> None:
    """A training round can lower its priority, run torch and write its state, and nothing beyond."""
    assert "trained" in entry["log"], entry["log"]
    assert "outside: Read-only file system" in entry["log"]
    assert entry["unit"]["Result"] == "success"


def test_unit_journal(entry: dict[str, Any]) -> None:
    """Journal lines have a priority of their own and neither prefix nor time in the text."""
    assert entry["lines"]
    assert "6" in {priority for priority, _ in entry["lines"]}
    for _, text in entry["lines"]:
        assert not re.match(r"<\d>|\d{4}-\d\d-\d\d", text), text
