"""`gruard backtest` from the command line, and its page in a real browser."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.image
import numpy as np
import pytest
from support_backtest import Dom, finished, report, series, usual, write_plant

from gruard.daemon.backtest import command
from gruard.daemon.backtest.networks import NETWORKS, network_for
from gruard.daemon.backtest.page import page
from gruard.daemon.cli import main
from gruard.daemon.errors import ConfigError
from gruard.models.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gruard.daemon.backtest.run import Batch, Finished

REPORTS = ["report.html", "report.json", "report.png"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def told(folder: Path) -> dict[str, Any]:
    body = json.loads((folder / "report.json").read_bytes())
    assert isinstance(body, dict)
    return body


# --- the whole way -------------------------------------------------------------------------------------


def test_backtest_writes_reports_and_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One command on a recording: the fault is found, and page, JSON, picture and summary say so."""
    path = write_plant(tmp_path / "plant.csv", fault=(280, 310))
    assert main(["backtest", str(path), "--warmup", "200", "--out", str(tmp_path / "out" / "deep")]) == 0
    folder = tmp_path / "out" / "deep"
    assert names(folder) == REPORTS
    body = told(folder)
    assert body["total"]["events_found"] == 1
    assert body["total"]["false_episodes"] == 0
    assert body["devices"][0]["warmup_readings"] == 200
    assert body["devices"][0]["alerts"][0]["top_fields"][0]["field"] == "c"
    rankings = body["total"]["rankings"]
    assert rankings["gruard"]["vus_pr"] > rankings["random"]["vus_pr"] + 0.3
    summary = capsys.readouterr()
    assert "1 of 1" in summary.out
    assert str(folder / "report.html") in summary.out
    assert summary.err == ""
    assert "Backtest of" in Dom((folder / "report.html").read_text(encoding="utf-8")).text


def test_backtest_json_goes_to_standard_output_alone(tmp_path: Path) -> None:
    """--json is for scripts: nothing else on standard output, no files; options come from the file."""
    path = write_plant(tmp_path / "plant.csv", 160)
    config = tmp_path / "gruard.toml"
    config.write_text(
        'version = 1\n[model]\nhidden = 4\nwarmup_readings = 70\n[alerts]\nbudget = "3 per device per day"\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "gruard.daemon", "backtest", path, "--json", "-c", config, "--model", "rnn"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    assert body["options"]["model"] == "rnn"
    assert body["options"]["hidden"] == 4
    assert body["options"]["budget"] == "3 per device per day"
    assert body["devices"][0]["warmup_readings"] == 70
    assert "devices" in done.stderr
    assert names(tmp_path) == ["gruard.toml", "plant.csv"]


@pytest.mark.parametrize("model", list(NETWORKS))
def test_backtest_every_network_by_its_name(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each network scores a recording by the same way; only the two-sided one is told to use hindsight."""
    path = write_plant(tmp_path / "plant.csv", 180, fault=(140, 179))
    config = tmp_path / "gruard.toml"
    config.write_text("version = 1\n[model]\nhidden = 4\n")
    arguments = ["--model", model, "--warmup", "100", "-c", str(config), "--out", str(tmp_path / "out")]
    assert main(["backtest", str(path), *arguments]) == 0
    body = told(tmp_path / "out")
    assert body["options"]["model"] == model
    assert body["total"]["events_found"] == 1
    assert body["causal"] is (model != "bigru")
    page = Dom((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).text
    assert ("hindsight" in page) is (model == "bigru")
    assert ("hindsight" in capsys.readouterr().out) is (model == "bigru")


# --- without training ----------------------------------------------------------------------------------


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    folder = tmp_path / "recordings"
    folder.mkdir()
    for n in range(3):
        write_plant(folder / f"pump-{n}.csv", 300, seed=n)
    return folder


def pretend(monkeypatch: pytest.MonkeyPatch, then: Callable[[str, Callable[[], bool]], int]) -> None:
    """Let batches be scored at once; `then` is told the device and returns how many rows are left out."""

    def run(
        batch: Batch, options: object, most: int, progress: Callable[[int], None], stop: Callable[[], bool]
    ) -> Iterator[Finished]:
        for one in batch.series:
            left = then(one.name, stop)
            yield finished(series(300, name=one.name), [(150, 160)], left=left)

    monkeypatch.setattr(command, "run", run)


def test_backtest_interrupted_keeps_what_is_done(
    recordings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C ends the run early; what is scored is reported, as a part of the whole, with status 130."""

    def interrupted_in_the_second(name: str, stop: Callable[[], bool]) -> int:
        if name != "pump-1":
            return 0
        assert not stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        return 40

    pretend(monkeypatch, interrupted_in_the_second)
    before = signal.getsignal(signal.SIGINT)
    out = recordings.parent / "out"
    assert main(["backtest", str(recordings), "--out", str(out)]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert names(out) == REPORTS
    assert [d["device"] for d in told(out)["devices"]] == ["pump-0", "pump-1"]
    assert told(out)["unfinished"] == ["pump-2"]
    assert told(out)["devices"][1]["readings_left_out"] == 40
    output = capsys.readouterr()
    assert "Ctrl-C again ends at once" in output.err
    assert "Interrupted" in output.out


def test_backtest_interrupted_twice_ends_at_once(recordings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second Ctrl-C does not wait for anything, and writes nothing."""

    def impatient(_name: str, _stop: Callable[[], bool]) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")

    pretend(monkeypatch, impatient)
    out = recordings.parent / "out"
    assert main(["backtest", str(recordings), "--out", str(out)]) == 130
    assert names(out) == []


def test_backtest_only_the_devices_asked_for(recordings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--device chooses, and may be given more than once."""
    pretend(monkeypatch, lambda *_: 0)
    out = recordings.parent / "out"
    asked = ["--device", "pump-2", "--device", "pump-0"]
    assert main(["backtest", str(recordings), "--out", str(out), *asked]) == 0
    assert [d["device"] for d in told(out)["devices"]] == ["pump-0", "pump-2"]


def test_backtest_device_that_teaches_nothing_is_told(
    recordings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One device that cannot be trained on costs its own part only; when all cannot, it is a mistake."""

    def poor(name: str, _stop: Callable[[], bool]) -> int:
        if name == "pump-1":
            raise ModelError("no device has the 60 normal readings that training needs")
        return 0

    pretend(monkeypatch, poor)
    out = recordings.parent / "out"
    assert main(["backtest", str(recordings), "--out", str(out)]) == 0
    assert told(out)["skipped"][0]["device"] == "pump-1"
    assert main(["backtest", str(recordings / "pump-1.csv"), "--out", str(out)]) == 78
    assert "nothing can be judged: pump-1 cannot be learnt from its warm-up" in capsys.readouterr().err


def test_backtest_without_matplotlib_goes_without_the_picture(
    recordings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The picture is an extra; what to install is said."""
    pretend(monkeypatch, lambda *_: 0)
    monkeypatch.setattr(command, "find_spec", lambda _: None)
    out = recordings.parent / "out"
    assert main(["backtest", str(recordings), "--out", str(out)]) == 0
    assert names(out) == ["report.html", "report.json"]
    assert "pip install 'gruard[report]'" in capsys.readouterr().out


def test_backtest_default_place_is_named_after_the_recording(
    recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --out the reports go into a directory beside the caller."""
    pretend(monkeypatch, lambda *_: 0)
    monkeypatch.chdir(recordings.parent)
    assert main(["backtest", "recordings/pump-1.csv"]) == 0
    assert names(recordings.parent / "pump-1-backtest") == REPORTS


def test_backtest_report_that_cannot_be_written_leaves_the_old_one(
    recordings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk costs the new report, not the one before, and leaves no rubbish."""
    pretend(monkeypatch, lambda *_: 0)
    out = recordings.parent / "out"
    arguments = ["backtest", str(recordings), "--out", str(out)]
    assert main(arguments) == 0
    before = (out / "report.html").read_bytes()

    def full(_report: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "page", full)
    assert main(arguments) == 78
    assert "cannot be written to: No space left on device" in capsys.readouterr().err
    assert (out / "report.html").read_bytes() == before
    assert names(out) == REPORTS


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["gone.csv"], "gone.csv: cannot be read: No such file or directory"),
        (["plant.csv", "--model", "gur"], '--model: "gur" is no network: it must be one of "gru", "lstm"'),
        (["plant.csv", "--model", "gur"], 'did you mean "gru"?'),
        (["plant.csv", "--warmup", "soon"], '--warmup: "soon" is neither a number of readings from 60 on'),
        (["plant.csv", "--warmup", "59"], '--warmup: "59" is neither'),
        (["plant.csv", "--warmup", "1.5"], '--warmup: "1.5" is neither'),
        (["plant.csv", "--warmup", "nan"], '--warmup: "nan" is neither'),
        (["plant.csv", "--warmup", "300"], "has 300 readings, and the warm-up alone takes 300"),
        (["plant.csv", "--warmup", "300"], "a shorter warm-up (--warmup)"),
        (["plant.csv", "--device", "plan"], 'has no device "plan", did you mean "plant"?'),
        (["plant.csv", "--label", "lable"], 'plant.csv:1: no column "lable" (found: time, a, b, c, label)'),
        (["plant.csv", "--exclude", "z"], 'plant.csv:1: no column "z"'),
        (["plant.csv", "--out", "plant.csv"], "--out: plant.csv: cannot be made: File exists"),
        (["plant.csv", "--seed", "-1"], "--seed: must be 0..4294967295, not -1"),
        (["plant.csv", "--model", "bigru", "--shared"], "--shared: bigru hears what follows"),
        (["plant.csv", "-c", "gone.toml"], "gone.toml"),
        (["text.npz"], "text.npz: cannot be read: File is not a zip file"),
    ],
)
def test_backtest_mistake_exits_78_with_a_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is wrong is told with the file or the option, before any work is done."""
    monkeypatch.chdir(tmp_path)
    write_plant(Path("plant.csv"), 300)
    Path("text.npz").write_text("no archive")
    assert main(["backtest", *arguments]) == 78
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.strip().splitlines()) == 1


def test_network_for_knows_every_cell_there_is() -> None:
    """Whatever can be trained can be backtested; only the two-sided one is not causal."""
    from gruard.models.cells import CELLS
    from gruard.models.training.comparators import OFFLINE_CELLS, TWO_SIDED_CELL

    assert tuple(NETWORKS) == CELLS + OFFLINE_CELLS
    for name in NETWORKS:
        assert network_for(name).cell == name
        assert network_for(name).causal is (name != TWO_SIDED_CELL)
    with pytest.raises(ConfigError, match="--model"):
        network_for("")


# --- on a terminal -------------------------------------------------------------------------------------


def test_backtest_on_a_terminal_shows_a_bar_and_hears_ctrl_c(tmp_path: Path) -> None:
    """In a real terminal the bar moves; Ctrl-C ends a long recording early, with a report of its head."""
    path = write_plant(tmp_path / "long.csv", 60_000)
    arguments = ["backtest", str(path), "--warmup", "100", "--out", str(tmp_path / "out")]
    screen, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "gruard.daemon", *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    ) as child:
        os.close(terminal)
        output, asked = b"", False
        end = time.monotonic() + 120
        try:
            while time.monotonic() < end:
                if select.select([screen], [], [], 0.5)[0]:
                    try:
                        output += os.read(screen, 65_536)
                    except OSError:  # the child has closed its side
                        break
                if not asked and re.search(rb"[1-5]\d{3,4}/60000", output):
                    child.send_signal(signal.SIGINT)
                    asked = True
            status = child.wait(10)
        finally:
            child.kill()
            os.close(screen)
    assert asked, output[-2000:]
    assert status == 130, output[-2000:]
    assert b"Traceback" not in output
    body = told(tmp_path / "out")
    assert body["interrupted"]
    assert 1000 <= body["devices"][0]["readings"] < 60_000
    assert body["devices"][0]["readings"] + body["devices"][0]["readings_left_out"] == 60_000


# --- in a browser --------------------------------------------------------------------------------------


def browse(folder: Path, url: str, *options: str) -> str:
    """What Debian's chromium prints; the test fails when the page complains of anything."""
    chromium = shutil.which("chromium", path="/usr/bin:/bin")
    if chromium is None:
        pytest.skip("chromium is not installed (Debian: chromium)")
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-gpu", "--hide-scrollbars"]
    done = subprocess.run(
        [
            *(chromium, "--headless", "--no-sandbox", *quiet, f"--user-data-dir={folder / 'profile'}"),
            *("--enable-logging=stderr", "--window-size=1000,1400", *options, url),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not complaints
    return done.stdout


def test_page_in_chromium_has_what_the_report_says(tmp_path: Path) -> None:
    """Debian's chromium reads the page as it is meant: charts, alerts, tables, and no complaint."""
    path = tmp_path / "report.html"
    path.write_text(page(usual()), encoding="utf-8")
    dom = Dom(browse(tmp_path, path.as_uri(), "--dump-dom"))
    assert len(dom.named("svg", "tall")) == 2
    assert len(dom.named("rect", "alert")) == 3
    assert len(dom.named("table", "events")) == 1
    assert len(dom.named("table", "controls")) == 1
    assert "pump-1 behaves unusually" in dom.text
    assert "1 of 2" in dom.text


@pytest.mark.parametrize(("scheme", "bright"), [(1, True), (0, False)])
def test_page_in_chromium_can_be_read_by_day_and_by_night(
    tmp_path: Path, scheme: int, *, bright: bool
) -> None:
    """The page is light or dark as the reader wants, and score and alert stand out from it."""
    path = tmp_path / "report.html"
    path.write_text(page(report(finished(series(400, labels=[(150, 190)]), [(150, 200)]))), encoding="utf-8")
    shot = tmp_path / "shot.png"
    browse(tmp_path, path.as_uri(), f"--screenshot={shot}", f"--blink-settings=preferredColorScheme={scheme}")
    pixels = matplotlib.image.imread(shot)[..., :3]
    assert bool(np.median(pixels) > 0.5) is bright
    colours = ((0x0B, 0x5C, 0xAD), (0xC6, 0x28, 0x28)) if bright else ((0x6C, 0xB2, 0xFF), (0xFF, 0x7B, 0x72))
    for colour in colours:
        near = np.abs(pixels - np.array(colour) / 255).max(axis=2) < 0.05
        assert near.sum() > 100, colour
