"""Log lines that cannot be forged, flood nobody and fit where they go: terminal, journal or collector.

Forms: `text` (time, level, logger, message), `journal` (priority prefix, no time: the journal has its
own) and `json` (one object a line). `auto` is `journal` when systemd reads the stream, else `text`.
Extra values go in `extra={"fields": {...}}` and appear as `key=value` or as members of the object; lines that
differ in the field `reason` are limited apart.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import threading
import traceback
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeAlias, get_args

from gruard.daemon.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping
    from types import TracebackType

_log = logging.getLogger("gruard")

_Key: TypeAlias = tuple[str, int, str, str]  # logger, level, template, reason

LogFormat = Literal["auto", "text", "json", "journal"]
LEVELS = ("debug", "info", "warning", "error", "critical")

#: Lines of one logger, template and reason in WINDOW_S, at DEBUG in a second; the rest are counted.
MAX_SIMILAR = 10
WINDOW_S = 60.0
#: Lines of one level in a second, whatever they say; the rest are counted.
MAX_PER_S = 100
#: Templates and reasons watched at once. Both are constants of the code, so this is never reached honestly.
MAX_TEMPLATES = 1000
#: What is remembered of a template and of a reason, in characters.
MAX_TEMPLATE_LENGTH = 200
#: Longer messages are cut: one hostile topic must not become a page of log.
MAX_MESSAGE_LENGTH = 4096
#: Longer tracebacks lose their middle.
MAX_TRACE_LENGTH = 4 * MAX_MESSAGE_LENGTH
#: Calls shown of a traceback in the text form, innermost first.
TEXT_FRAMES = 4

# sd-daemon(3): the journal reads the syslog level from this prefix of a line.
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def configure(level: str, format: LogFormat, stream: TextIO, environ: Mapping[str, str]) -> None:  # noqa: A002 -- the setting's own name
    """Send all logging to `stream` in `format`, from `level` upwards, in place of an earlier call's.

    Warnings, and errors that nobody caught in any thread, become log lines too: no raw text is written.

    Raises:
        ConfigError: for a level or a format that does not exist.
    """
    if level.lower() not in LEVELS:
        raise ConfigError(f'Unknown log level "{level}": use debug, info, warning, error or critical.')
    if format not in get_args(LogFormat):
        raise ConfigError(f'Unknown log format "{format}": use auto, text, json or journal.')
    if format == "auto":
        format = "journal" if reaches_journal(stream, environ) else "text"  # noqa: A001 -- as above
    root = logging.getLogger()
    for earlier in [sink for sink in root.handlers if isinstance(sink, LimitedStream)]:
        root.removeHandler(earlier)
        earlier.close()
    sink = LimitedStream(stream)
    sink.setFormatter(_FORMS[format]())
    root.addHandler(sink)
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    _hear_uncaught()


def _hear_uncaught() -> None:
    # A hook that somebody else has put in place, such as a test runner's, stays.
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _uncaught
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _uncaught_in_thread
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    _log.critical("ended by an error that nobody caught", exc_info=(kind, error, trace))


def _uncaught_in_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None:
        name = "?" if ended.thread is None else ended.thread.name
        _log.critical("thread %s ended by an error that nobody caught", name, exc_info=ended.exc_value)


def _unraisable(error: sys.UnraisableHookArgs) -> None:
    # Its object is left out: what it looks like printed is up to whoever wrote it.
    _log.error("an error where none can be raised", exc_info=error.exc_value)


def reaches_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Say whether systemd's journal reads `stream` (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


# -- rate limit ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Window:
    """Lines that are alike, from the first on for `length_s`."""

    started_s: float
    length_s: float
    logger: str
    level: int
    text: str  # what they have in common
    seen: int = 0
    withheld: int = 0

    def is_over(self, now_s: float) -> bool:
        # A wall clock that was set back must not silence a line for the length of the step.
        return not 0 <= now_s - self.started_s < self.length_s

    def admits(self, most: int) -> bool:
        self.seen += 1
        self.withheld += self.seen > most
        return self.seen <= most


class RepeatLimit:
    """Lets MAX_SIMILAR records of one logger, template and reason through in WINDOW_S, then counts them.

    At DEBUG the window is a second. Beyond that, each level has MAX_PER_S lines in a second, the reports of
    what was withheld among them. Nothing is withheld uncounted. Time is the records' own.
    """

    def __init__(self) -> None:
        self._similar: dict[float, OrderedDict[_Key, _Window]] = {
            length_s: OrderedDict()  # oldest first
            for length_s in (1.0, WINDOW_S)
        }
        self._levels: dict[int, _Window] = {}

    def admit(self, record: logging.LogRecord) -> Iterator[logging.LogRecord]:
        """Yield what is to be written now: reports of windows that are over, then `record` if it may."""
        now_s = record.created
        yield from self._close_levels(now_s)
        for windows in self._similar.values():
            while windows and next(iter(windows.values())).is_over(now_s):
                yield from self._report(windows.popitem(last=False)[1], now_s)
        if (yield from self._window(record, now_s)).admits(MAX_SIMILAR):
            yield from self._write(record)

    def finish(self) -> Iterator[logging.LogRecord]:
        """Yield all that is still owed: nothing follows that could bring it."""
        for windows in self._similar.values():
            for window in windows.values():
                if window.withheld:
                    yield _report(window, window.started_s)
            windows.clear()
        yield from self._close_levels(math.inf)

    def _window(self, record: logging.LogRecord, now_s: float) -> Generator[logging.LogRecord, None, _Window]:
        length_s = 1.0 if record.levelno <= logging.DEBUG else WINDOW_S
        windows = self._similar[length_s]
        reason = str(_fields(record).get("reason", ""))[:MAX_TEMPLATE_LENGTH]
        key = (record.name, record.levelno, str(record.msg)[:MAX_TEMPLATE_LENGTH], reason)
        if key not in windows:
            if len(windows) >= MAX_TEMPLATES:
                yield from self._report(windows.popitem(last=False)[1], now_s)
            text = f"{key[2]} ({reason})" if reason else key[2]
            windows[key] = _Window(now_s, length_s, record.name, record.levelno, text)
        return windows[key]

    def _write(self, record: logging.LogRecord, lines: int = 1) -> Iterator[logging.LogRecord]:
        """Yield `record`, which stands for so many lines, unless its level has had its share."""
        window = self._levels.get(record.levelno)
        if window is None:
            text = f"more than {MAX_PER_S} lines in a second"
            window = _Window(record.created, 1.0, "gruard", record.levelno, text)
            self._levels[record.levelno] = window
        if window.admits(MAX_PER_S):
            yield record
        else:
            window.withheld += lines - 1

    def _report(self, window: _Window, now_s: float) -> Iterator[logging.LogRecord]:
        if window.withheld:
            yield from self._write(_report(window, now_s), window.withheld)

    def _close_levels(self, now_s: float) -> Iterator[logging.LogRecord]:
        for level in [level for level, window in self._levels.items() if window.is_over(now_s)]:
            window = self._levels.pop(level)
            if window.withheld:
                yield _report(window, min(now_s, window.started_s + window.length_s))


def _report(window: _Window, now_s: float) -> logging.LogRecord:
    return logging.makeLogRecord(
        {
            "name": window.logger,
            "levelno": window.level,
            "levelname": logging.getLevelName(window.level),
            "created": now_s,
            "msg": "suppressed %d similar: %s",
            "args": (window.withheld, window.text),
        }
    )


class LimitedStream(logging.StreamHandler[TextIO]):
    """A stream of log lines behind a RepeatLimit."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._limit = RepeatLimit()

    def emit(self, record: logging.LogRecord) -> None:
        """Write `record`, or count it, and write what became due."""
        for due in self._limit.admit(record):
            super().emit(due)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 -- the library's name
        """Say that a line was lost. The library's own words would show its arguments, raw."""
        kind = type(sys.exc_info()[1]).__name__
        with suppress(Exception):  # nobody is left to tell
            self.stream.write(escape(f"logs: a line of {record.name} cannot be written: {kind}") + "\n")
            self.flush()

    def close(self) -> None:
        """Write the counts that are still owed."""
        self.acquire()
        try:
            for due in self._limit.finish():
                super().emit(due)
        finally:
            self.release()
        super().close()


# -- forms ---------------------------------------------------------------------------------------------


class TextForm(logging.Formatter):
    """`2026-01-02T03:04:05.678Z INFO broker: connected host=localhost`, always a single line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = f"{_time(record)} {record.levelname} {_body(record)}"
        return line + _short_trace(record)


class JournalForm(logging.Formatter):
    """`<6>broker: connected host=localhost`; a traceback follows, each line with its prefix."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line or lines."""
        priority = next((code for level, code in _PRIORITIES if record.levelno >= level), 7)
        lines = [_body(record), *("  " + escape(line) for line in _trace(record).splitlines())]
        return "\n".join(f"<{priority}>{line}" for line in lines)


class JsonForm(logging.Formatter):
    """One JSON object: the fields, then time, level, logger, message and, if there is one, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        members = {str(key): _plain(value) for key, value in _fields(record).items()}
        members |= {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": escape(_message(record)),
        }
        trace = _trace(record)
        if trace:
            members["traceback"] = trace
        return json.dumps(members, allow_nan=False)


_FORMS: Mapping[str, type[logging.Formatter]] = {
    "text": TextForm,
    "journal": JournalForm,
    "json": JsonForm,
}


def escape(text: str) -> str:
    """Return `text` on one line without control characters, bidi tricks or surrogates."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


def _body(record: logging.LogRecord) -> str:
    words = [f"{record.name.removeprefix('gruard.daemon.')}: {escape(_message(record))}"]
    for key, value in _fields(record).items():
        words.append(f"{escape(str(key))}={_quoted(escape(str(value)[:MAX_MESSAGE_LENGTH]))}")
    return " ".join(words)


def _quoted(text: str) -> str:
    """`text` as one word: a value must not end early and go on as a field of its own."""
    if text and not any(mark in text for mark in ' "='):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _message(record: logging.LogRecord) -> str:
    return _cut(record.getMessage())


def _cut(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE_LENGTH else text[:MAX_MESSAGE_LENGTH] + "…"


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    return fields


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return escape(str(value)[:MAX_MESSAGE_LENGTH])


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _trace(record: logging.LogRecord) -> str:
    if record.exc_info is None or record.exc_info[1] is None:
        return ""
    parts = traceback.format_exception(record.exc_info[1])
    text = "".join(
        part if len(part) <= MAX_MESSAGE_LENGTH else part[:MAX_MESSAGE_LENGTH] + "…\n" for part in parts
    )
    half = MAX_TRACE_LENGTH // 2
    return text if len(text) <= MAX_TRACE_LENGTH else f"{text[:half]}\n…\n{text[-half:]}"


def _short_trace(record: logging.LogRecord) -> str:
    if record.exc_info is None or record.exc_info[1] is None:
        return ""
    error = record.exc_info[1]
    frames = traceback.extract_tb(error.__traceback__)[-TEXT_FRAMES:]
    calls = " < ".join(f"{PurePath(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))
    what = "".join(traceback.format_exception_only(error)).strip()
    return f" | {escape(what[:MAX_MESSAGE_LENGTH])} [{escape(calls)}]"
