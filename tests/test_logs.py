"""Log lines: their three forms, that nobody can forge or flood them, and that nothing goes uncounted."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

from gruard.daemon import logs
from gruard.daemon.errors import ConfigError
from gruard.daemon.logs import (
    MAX_MESSAGE_LENGTH,
    MAX_PER_S,
    MAX_SIMILAR,
    MAX_TEMPLATES,
    MAX_TRACE_LENGTH,
    WINDOW_S,
    configure,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOSTILE = "dev\n<0>root: forged\r\x1b[2J\x00\u202e\u2028\ud800end"


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    yield
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    for added in [sink for sink in root.handlers if sink not in before]:
        root.removeHandler(added)
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def log(
    template: str,
    *args: object,
    at: float = 0.0,
    level: int = logging.WARNING,
    name: str = "gruard.daemon.broker",
    fields: dict[str, Any] | None = None,
    error: BaseException | None = None,
) -> None:
    """Log one record with a time of the test's own."""
    logging.getLogger(name).handle(
        record_of(template, *args, at=at, level=level, name=name, fields=fields, error=error)
    )


def record_of(
    template: str,
    *args: object,
    at: float = 0.0,
    level: int = logging.WARNING,
    name: str = "gruard.daemon.broker",
    fields: dict[str, Any] | None = None,
    error: BaseException | None = None,
) -> logging.LogRecord:
    values = {"name": name, "levelno": level, "levelname": logging.getLevelName(level), "created": at}
    values |= {"msg": template, "args": args, "exc_info": error and (type(error), error, None)}
    if fields is not None:
        values["fields"] = fields
    return logging.makeLogRecord(values)


def sink() -> logs.LimitedStream:
    return next(found for found in logging.getLogger().handlers if isinstance(found, logs.LimitedStream))


def fail(text: str) -> None:
    raise ValueError(text)


def raised(text: str) -> BaseException:
    try:
        fail(text)
    except ValueError as error:
        return error


def test_text_line_has_time_level_logger_message_and_fields(stream: io.StringIO) -> None:
    """A person reads all of it on one line; values with spaces are quoted."""
    configure("info", "text", stream, {})
    log("connected to %s", "localhost", at=1_700_000_000.25, fields={"port": 1883, "why": "first try"})
    assert stream.getvalue() == (
        '2023-11-14T22:13:20.250Z WARNING broker: connected to localhost port=1883 why="first try"\n'
    )


def test_json_line_is_one_object(stream: io.StringIO) -> None:
    """A collector gets every member on one line, with fields beside them that cannot replace them."""
    configure("info", "json", stream, {})
    log(
        "up",
        at=1_700_000_000.25,
        fields={"devices": 3, "message": "forged", "skill": float("nan"), "x": None},
    )
    assert json.loads(stream.getvalue()) == {
        "devices": 3,
        "skill": "nan",
        "x": None,
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "logger": "gruard.daemon.broker",
        "message": "up",
    }
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize(
    ("level", "priority"),
    [
        (logging.DEBUG, 7),
        (logging.INFO, 6),
        (logging.WARNING, 4),
        (logging.ERROR, 3),
        (logging.CRITICAL, 2),
    ],
)
def test_journal_line_carries_the_priority(stream: io.StringIO, level: int, priority: int) -> None:
    """The journal learns the level from the prefix and needs no time from us."""
    configure("debug", "journal", stream, {})
    log("up", level=level)
    assert stream.getvalue() == f"<{priority}>broker: up\n"


@pytest.mark.parametrize("form", ["text", "json", "journal"])
def test_hostile_text_stays_on_its_line(stream: io.StringIO, form: logs.LogFormat) -> None:
    """Newlines, escapes, bidi marks and surrogates of a publisher reach no log as themselves."""
    configure("info", form, stream, {})
    log("bad topic %s", HOSTILE, fields={"topic": HOSTILE, HOSTILE: 1})
    written = stream.getvalue()
    assert written.endswith("\n")
    assert written[:-1].isprintable()
    assert "forged" in written


@pytest.mark.parametrize("form", ["text", "json"])
def test_traceback_stays_on_its_line(stream: io.StringIO, form: logs.LogFormat) -> None:
    """An error is one line in text (with its last calls) and one string in JSON (whole)."""
    configure("info", form, stream, {})
    log("failed", error=raised(HOSTILE))
    assert stream.getvalue()[:-1].isprintable()
    assert "ValueError" in stream.getvalue()
    assert re.search(r"test_logs\.py.*raised", stream.getvalue())


def test_journal_traceback_has_its_prefix_on_each_line(stream: io.StringIO) -> None:
    """Each line of a traceback has the priority and an indent, so that none can pose as a message."""
    configure("info", "journal", stream, {})
    log("failed", error=raised(HOSTILE))
    first, *rest = stream.getvalue().splitlines()
    assert first == "<4>broker: failed"
    assert len(rest) > 3
    assert all(line.startswith("<4>  ") and line.isprintable() for line in rest)


def test_long_message_is_cut(stream: io.StringIO) -> None:
    """A message has a largest length, whatever a publisher puts into it."""
    configure("info", "text", stream, {})
    log("bad topic %s", "x" * 1_000_000, fields={"topic": "y" * 1_000_000})
    assert len(stream.getvalue()) < 2 * MAX_MESSAGE_LENGTH + 200


def test_level_is_respected(stream: io.StringIO) -> None:
    """What lies below the level is not written."""
    configure("warning", "text", stream, {})
    logging.getLogger("gruard.quiet").info("hidden")
    logging.getLogger("gruard.quiet").warning("shown")
    assert "hidden" not in stream.getvalue()
    assert "shown" in stream.getvalue()


def test_second_configure_replaces_the_first(stream: io.StringIO) -> None:
    """Configuring again does not write each line twice."""
    configure("info", "text", io.StringIO(), {})
    configure("info", "json", stream, {})
    log("up")
    assert stream.getvalue().count('"message": "up"') == 1


def test_warnings_become_log_lines() -> None:
    """A warning of a library is a log line, not a stray text on the terminal."""
    script = (
        "import sys, warnings; from gruard.daemon.logs import configure;"
        "configure('info', 'journal', sys.stdout, {}); warnings.warn('old call', UserWarning)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert re.match(r"<4>py\.warnings: .*UserWarning: old call", done.stdout)
    assert done.stderr == ""


@pytest.mark.parametrize(("level", "form"), [("loud", "text"), ("notset", "text"), ("info", "xml")])
def test_unknown_setting_is_a_configuration_error(stream: io.StringIO, level: str, form: Any) -> None:
    """A level or format that does not exist is named together with those that do."""
    with pytest.raises(ConfigError, match="use"):
        configure(level, form, stream, {})


def test_auto_is_journal_only_when_the_journal_reads_the_stream(stream: io.StringIO) -> None:
    """The form follows the stream itself, not the mere presence of systemd."""
    with tempfile.TemporaryFile("w+") as file:
        status = os.fstat(file.fileno())
        ours = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        for environ, start in (
            (ours, "<4>broker: up"),
            ({}, "1970-01-01T"),
            ({"JOURNAL_STREAM": "8:1"}, "1970-01-01T"),
        ):
            file.seek(0)
            file.truncate()
            configure("info", "auto", file, environ)
            log("up")
            file.seek(0)
            assert file.read().startswith(start)
    configure("info", "auto", stream, ours)
    log("up")
    assert stream.getvalue().startswith("1970-01-01T")


def test_repeats_are_counted_and_reported(stream: io.StringIO) -> None:
    """A flood of one template writes its first lines, then one line that says how many it kept back."""
    configure("info", "text", stream, {})
    for n in range(1000):
        log("bad payload on %s", f"topic-{n}", at=n * 0.01)
    assert stream.getvalue().count("\n") == MAX_SIMILAR
    log("something else", at=WINDOW_S + 1)
    report, other = stream.getvalue().splitlines()[MAX_SIMILAR:]
    assert f"broker: suppressed {1000 - MAX_SIMILAR} similar: bad payload on %s" in report
    assert "WARNING" in report
    assert "something else" in other


def test_repeats_are_written_again_in_the_next_window(stream: io.StringIO) -> None:
    """A window that is over starts a new one; nothing is silenced for ever."""
    configure("info", "text", stream, {})
    for window in range(3):
        for _ in range(MAX_SIMILAR):
            log("slow", at=window * (WINDOW_S + 1))
    assert stream.getvalue().count("slow") == 3 * MAX_SIMILAR
    assert "suppressed" not in stream.getvalue()


def test_templates_loggers_and_levels_are_limited_apart(stream: io.StringIO) -> None:
    """A flood of one line does not silence another."""
    configure("info", "text", stream, {})
    for _ in range(MAX_SIMILAR + 5):
        log("flood")
    log("flood", name="gruard.daemon.engine")
    log("flood", level=logging.ERROR)
    log("other")
    assert stream.getvalue().count("\n") == MAX_SIMILAR + 3


def test_clock_set_back_silences_nothing(stream: io.StringIO) -> None:
    """When the wall clock falls by a year, the window ends instead of lasting a year."""
    configure("info", "text", stream, {})
    for _ in range(MAX_SIMILAR + 1):
        log("flood", at=4e7)
    log("flood", at=0.0)
    assert "suppressed 1 similar" in stream.getvalue()
    assert stream.getvalue().count("\n") == MAX_SIMILAR + 2


def test_debug_is_limited_by_the_second(stream: io.StringIO) -> None:
    """Whoever turns debug on sees much more, and still no flood: so many lines a second, the rest counted."""
    configure("debug", "text", stream, {})
    for n in range(300):
        log("packet", level=logging.DEBUG, at=n * 0.01)
    log("packet", level=logging.DEBUG, at=10)
    lines = stream.getvalue().splitlines()
    assert sum(line.endswith("packet") and "suppressed" not in line for line in lines) == 3 * MAX_SIMILAR + 1
    assert sum(f"suppressed {100 - MAX_SIMILAR} similar: packet" in line for line in lines) == 3


@pytest.mark.parametrize("level", [logging.DEBUG, logging.WARNING])
def test_reasons_are_limited_apart(stream: io.StringIO, level: int) -> None:
    """A flood for one reason does not hide another, and each report names its reason."""
    configure("debug", "text", stream, {})
    for n in range(50):
        log("refused %s", f"id-{n}", level=level, fields={"reason": "not_json"})
    log("refused %s", "id-0", level=level, fields={"reason": "late"})
    log("later", at=WINDOW_S + 1)
    assert stream.getvalue().count("reason=not_json") == MAX_SIMILAR
    assert stream.getvalue().count("reason=late") == 1
    assert f"suppressed {50 - MAX_SIMILAR} similar: refused %s (not_json)" in stream.getvalue()


def accounted(text: str) -> int:
    """Lines written, and those that a report says were withheld, which stands for itself in no sum."""
    withheld = sum(int(count) for count in re.findall(r"suppressed (\d+) similar", text))
    return text.count("\n") - len(re.findall(r"suppressed \d+ similar", text)) + withheld


@pytest.mark.parametrize("kinds", [150, 7000])
@pytest.mark.parametrize("level", [logging.DEBUG, logging.WARNING])
def test_flood_of_templates_and_reasons_is_bounded_and_counted(
    stream: io.StringIO, level: int, kinds: int
) -> None:
    """Whatever is made up, a level has so many lines a second; what is not written is counted exactly."""
    configure("debug", "text", stream, {})
    sent, seconds, written = 20_000, 4, sink()
    for n in range(sent):
        fields = {"reason": f"reason-{n % 30}\n"}
        template = f"template {n % kinds} \n %s"
        written.handle(record_of(template, HOSTILE, at=n * seconds / sent, level=level, fields=fields))
    configure("debug", "text", io.StringIO(), {})
    text = stream.getvalue()
    assert accounted(text) == sent
    at_the_end = 2 * MAX_TEMPLATES
    assert text.count("\n") <= seconds * (MAX_PER_S + 1) + at_the_end
    assert text.replace("\n", "").isprintable()


def test_flood_of_one_level_does_not_hide_another(stream: io.StringIO) -> None:
    """An error is written though warnings have used up their share of the second."""
    configure("info", "text", stream, {})
    for n in range(5 * MAX_PER_S):
        log(f"template {n}")
    log("the disk is full", level=logging.ERROR)
    assert "ERROR broker: the disk is full" in stream.getvalue()
    assert stream.getvalue().count("WARNING") == MAX_PER_S


def test_flood_of_huge_lines_costs_little_memory() -> None:
    """Of a template and a reason only the beginning is remembered, and of the oldest nothing."""
    configure("info", "text", io.StringIO(), {})
    limit = sink()._limit
    tracemalloc.start()
    try:
        for n in range(3 * MAX_TEMPLATES):
            fields = {"reason": f"{n} " + "y" * 10_000}
            for _ in limit.admit(record_of(f"{n} " + "x" * 100_000, fields=fields)):
                pass
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 3e6


def test_counts_still_owed_are_written_at_the_end(stream: io.StringIO) -> None:
    """Closing the log reports what was kept back, so no line goes uncounted."""
    configure("info", "text", stream, {})
    for _ in range(MAX_SIMILAR + 7):
        log("flood")
    configure("info", "text", sys.stderr, {})
    assert "suppressed 7 similar: flood" in stream.getvalue()


def test_templates_watched_are_bounded(stream: io.StringIO) -> None:
    """Templates made up on the fly cannot grow the memory, and the counts of those let go are written."""
    configure("info", "text", stream, {})
    for _ in range(MAX_SIMILAR + 2):
        log("flood")
    for n in range(MAX_TEMPLATES):
        log(f"template {n}", at=n * 0.02)
    assert len(sink()._limit._similar[WINDOW_S]) == MAX_TEMPLATES
    assert "suppressed 2 similar: flood" in stream.getvalue()


@pytest.mark.parametrize("form", ["text", "json", "journal"])
def test_traceback_is_cut(stream: io.StringIO, form: logs.LogFormat) -> None:
    """Neither a huge error text nor a long chain of errors becomes a page of log."""
    configure("info", form, stream, {})
    error = raised("x" * 1_000_000)
    for _ in range(200):
        error = chained(error)
    log("failed", error=error)
    assert len(stream.getvalue()) < 3 * MAX_TRACE_LENGTH


def chained(cause: BaseException) -> BaseException:
    following = raised("next " + "z" * 1000)
    following.__cause__ = cause
    return following


@pytest.mark.parametrize("form", ["text", "journal"])
def test_value_cannot_pose_as_another_field(stream: io.StringIO, form: logs.LogFormat) -> None:
    """Quotes, spaces and equal signs in a value stay inside its quotes."""
    configure("info", form, stream, {})
    log("refused", fields={"device": 'a" severity="critical', "empty": "", "sum": "1=1", "plain": "pump-1"})
    assert stream.getvalue().endswith('device="a\\" severity=\\"critical" empty="" sum="1=1" plain=pump-1\n')


def test_line_that_cannot_be_written_shows_nothing_of_its_arguments(
    stream: io.StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    """A mistake in a log call costs one line; what it was about appears nowhere, raw or otherwise."""
    configure("info", "text", stream, {})
    sink().handle(record_of("%d devices", HOSTILE))
    assert stream.getvalue() == "logs: a line of gruard.daemon.broker cannot be written: TypeError\n"
    assert capfd.readouterr() == ("", "")


def test_stream_that_is_gone_is_no_error(tmp_path: Path) -> None:
    """A full disk or a closed pipe behind the log costs the lines and nothing else."""
    with (tmp_path / "log").open("w") as file:
        configure("info", "text", file, {})
    log("nobody reads this")
    assert (tmp_path / "log").read_text() == ""


UNCAUGHT = """
import sys, threading
from gruard.daemon.logs import configure
configure("info", {form!r}, sys.stderr, {{}})
def fail():
    raise ValueError({text!r})
class Odd:
    def __del__(self):
        fail()
    def __repr__(self):
        return {text!r} + "repr"
if {where!r} == "thread":
    thread = threading.Thread(target=fail, name="reader")
    thread.start()
    thread.join()
elif {where!r} == "unraisable":
    Odd()
else:
    fail()
"""


@pytest.mark.parametrize("form", ["text", "json", "journal"])
@pytest.mark.parametrize("where", ["main", "thread", "unraisable"])
def test_error_that_nobody_caught_is_a_log_line(where: str, form: str) -> None:
    """A crash in any thread is told in the log's own form; hostile text in it is escaped as everywhere."""
    script = UNCAUGHT.format(form=form, where=where, text=HOSTILE)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == (1 if where == "main" else 0)
    assert done.stdout == ""
    assert "ValueError" in done.stderr
    assert "forged" in done.stderr
    assert "repr" not in done.stderr
    assert all(line.isprintable() for line in done.stderr.split("\n"))
    start = {"text": r"\d{4}-", "json": r"\{", "journal": r"<[23]>"}[form]
    assert all(re.match(start, line) for line in done.stderr.split("\n")[:-1])


def test_interrupt_is_no_error_to_log() -> None:
    """Ctrl-C during start-up ends as Python ends it."""
    script = (
        "import sys; from gruard.daemon.logs import configure; configure('info', 'text', sys.stderr, {});"
        "raise KeyboardInterrupt"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.endswith("KeyboardInterrupt\n")
    assert "nobody caught" not in done.stderr


def test_hooks_of_others_stay(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """A debugger's or test runner's hook for uncaught errors is not replaced."""
    hooks = []
    for module, name in ((sys, "excepthook"), (threading, "excepthook"), (sys, "unraisablehook")):
        monkeypatch.setattr(module, name, hook := lambda *_: None)
        hooks.append((module, name, hook))
    configure("info", "text", stream, {})
    assert all(getattr(module, name) is hook for module, name, hook in hooks)
