"""Log lines that cannot be forged, flood nobody and fit where they go: terminal, journal or collector.

Forms: `text` (time, level, logger, message), `journal` (priority prefix, no time: the journal has its
own) and `json` (one object a line). `auto` is `journal` when systemd reads the stream, else `text`.
Extra values go in `extra={"fields": {...}}` and appear as `key=value` or as members of the object.
"""

from __future__ import annotations

import json
import logging
import math
import os
import traceback
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, TextIO, get_args

from gruard.daemon.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LogFormat = Literal["auto", "text", "json", "journal"]
LEVELS = ("debug", "info", "warning", "error", "critical")

#: The same template of the same logger may appear this often in a window; the rest are counted.
MAX_SIMILAR = 10
WINDOW_S = 60.0
#: Templates watched at once. A template is a constant of the code, so this is never reached honestly.
MAX_TEMPLATES = 1000
#: Longer messages are cut: one hostile topic must not become a page of log.
MAX_MESSAGE_LENGTH = 4096
#: Calls shown of a traceback in the text form, innermost first.
TEXT_FRAMES = 4

# sd-daemon(3): the journal reads the syslog level from this prefix of a line.
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def configure(level: str, format: LogFormat, stream: TextIO, environ: Mapping[str, str]) -> None:  # noqa: A002 -- the setting's own name
    """Send all logging to `stream` in `format`, from `level` upwards, in place of an earlier call's.

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
    started_s: float
    logger: str
    level: int
    template: str
    seen: int = 0

    def is_over(self, now_s: float) -> bool:
        # A wall clock that was set back must not silence a line for the length of the step.
        return not 0 <= now_s - self.started_s < WINDOW_S


class RepeatLimit:
    """Lets MAX_SIMILAR records of one logger and template through in WINDOW_S, then counts them.

    Time is the records' own. DEBUG is not limited: whoever turns it on wants every line.
    """

    def __init__(self) -> None:
        self._windows: OrderedDict[tuple[str, int, str], _Window] = OrderedDict()  # oldest first

    def admit(self, record: logging.LogRecord) -> Iterator[logging.LogRecord]:
        """Yield what is to be written now: reports of windows that are over, then `record` if it may."""
        yield from self._close_windows(record.created)
        if record.levelno <= logging.DEBUG:
            yield record
            return
        key = (record.name, record.levelno, str(record.msg))
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= MAX_TEMPLATES:
                yield from _report(self._windows.popitem(last=False)[1], record.created)
            window = self._windows[key] = _Window(record.created, *key)
        window.seen += 1
        if window.seen <= MAX_SIMILAR:
            yield record

    def finish(self) -> Iterator[logging.LogRecord]:
        """Yield the reports of all windows: nothing follows that could bring them."""
        for window in self._windows.values():
            yield from _report(window, window.started_s)
        self._windows.clear()

    def _close_windows(self, now_s: float) -> Iterator[logging.LogRecord]:
        while self._windows:
            key, window = next(iter(self._windows.items()))
            if not window.is_over(now_s):
                return
            del self._windows[key]
            yield from _report(window, now_s)


def _report(window: _Window, now_s: float) -> Iterator[logging.LogRecord]:
    suppressed = window.seen - MAX_SIMILAR
    if suppressed > 0:
        yield logging.makeLogRecord(
            {
                "name": window.logger,
                "levelno": window.level,
                "levelname": logging.getLevelName(window.level),
                "created": now_s,
                "msg": "suppressed %d similar: %s",
                "args": (suppressed, window.template),
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
        shown = escape(str(value)[:MAX_MESSAGE_LENGTH])
        words.append(f'{escape(str(key))}="{shown}"' if " " in shown else f"{escape(str(key))}={shown}")
    return " ".join(words)


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    return message if len(message) <= MAX_MESSAGE_LENGTH else message[:MAX_MESSAGE_LENGTH] + "…"


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
    return "".join(traceback.format_exception(record.exc_info[1]))


def _short_trace(record: logging.LogRecord) -> str:
    if record.exc_info is None or record.exc_info[1] is None:
        return ""
    error = record.exc_info[1]
    frames = traceback.extract_tb(error.__traceback__)[-TEXT_FRAMES:]
    calls = " < ".join(f"{PurePath(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))
    what = "".join(traceback.format_exception_only(error)).strip()
    return f" | {escape(what[:MAX_MESSAGE_LENGTH])} [{escape(calls)}]"
