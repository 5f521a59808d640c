"""Faults below libc for a process that runs: the other end of faults/shim.c, and what goes with it.

with Shim(folder, directory) as shim:
    Daemon(...).start(environ=shim.environ)
    shim.arm(Kind.WRITE | Kind.SYNC, first=3, last=3, fault=errno.EIO)
    shim.clock_offset_s = 3600.0
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
from contextlib import contextmanager, suppress
from enum import IntFlag
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from support_daemon import Daemon

SOURCE: Final = Path(__file__).with_name("faults") / "shim.c"
NEVER: Final = 2**64 - 1
#: All of it instead of a sample. Taken out: a daemon refuses variables of its prefix that it does not know.
EVERY: Final = os.environ.pop("GRUARD_TORTURE_EVERY", "") == "1"
_LOGGED: Final = 512


class Kind(IntFlag):
    """What can fail; a mask of them."""

    WRITE = 1
    SYNC = 2
    RENAME = 4
    TRUNCATE = 8
    CREATE = 16
    UNLINK = 32
    ANY = 63


class _Entry(ctypes.Structure):
    _fields_ = (
        ("number", ctypes.c_uint64),
        ("kind", ctypes.c_uint32),
        ("fault", ctypes.c_int32),
        ("name", ctypes.c_char * 56),
    )


class _Page(ctypes.Structure):
    _fields_ = (
        ("clock_offset_ns", ctypes.c_int64),
        ("count", ctypes.c_uint64),
        ("first", ctypes.c_uint64),
        ("last", ctypes.c_uint64),
        ("failed", ctypes.c_uint64),
        ("sync_delay_ns", ctypes.c_uint64),
        ("unsynced", ctypes.c_uint64),
        ("counted", ctypes.c_uint32),
        ("blocked", ctypes.c_uint32),
        ("fault", ctypes.c_int32),
        ("partly", ctypes.c_uint32),
        ("log", _Entry * _LOGGED),
    )


def library(folder: Path) -> Path:
    """The library, compiled into the folder; skips the test, and says why, where that is not possible."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler (Debian packages gcc and libc6-dev)")
    made = folder / "shim.so"
    command = [compiler, "-std=gnu11", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-o", str(made)]
    done = subprocess.run([*command, str(SOURCE), "-ldl"], capture_output=True, text=True, check=False)
    if "stdio.h" in done.stderr:
        pytest.skip("needs the C library's headers (Debian package libc6-dev)")
    assert done.returncode == 0, done.stderr
    return made


class Shim:
    """One page of faults for the files below `directory`; `environ` puts a process under it."""

    def __init__(self, folder: Path, directory: Path | None = None) -> None:
        file = folder / "shim.page"
        file.write_bytes(bytes(ctypes.sizeof(_Page)))
        self.environ = {"LD_PRELOAD": str(library(folder)), "SHIM_PAGE": str(file)}
        if directory is not None:
            self.environ["SHIM_DIRECTORY"] = os.path.realpath(directory)
        self._map(file)

    @classmethod
    def of_this_process(cls) -> Self:
        """The page that the environment of this very process names."""
        self = cls.__new__(cls)
        self.environ = {}
        self._map(Path(os.environ["SHIM_PAGE"]))
        return self

    def _map(self, file: Path) -> None:
        with file.open("r+b") as opened:
            self._memory = mmap.mmap(opened.fileno(), ctypes.sizeof(_Page))
        self._page = _Page.from_buffer(self._memory)

    def arm(self, kinds: Kind, first: int, last: int, fault: int, *, partly: bool = False) -> None:
        """From now on operations of these kinds are numbered from 1, and those from `first` to `last` fail.

        `fault` is an errno; with 0 a write is short and nothing else fails. `partly`: a write that fails
        has left half of its bytes behind.
        """
        self.disarm()
        self._page.count = self._page.failed = 0
        self._page.fault, self._page.partly = fault, int(partly)
        self._page.first, self._page.last = first, last
        self._page.counted = int(kinds)

    def disarm(self) -> None:
        """Let everything succeed again."""
        self._page.counted = self._page.first = self._page.last = 0

    def block(self, kinds: Kind) -> None:
        """Make operations of these kinds wait until `release`."""
        self._page.blocked = int(kinds)

    def release(self) -> None:
        self._page.blocked = 0

    @property
    def count(self) -> int:
        """Operations numbered since `arm`."""
        return int(self._page.count)

    @property
    def failed(self) -> int:
        """How many of them failed."""
        return int(self._page.failed)

    @property
    def unsynced(self) -> int:
        """Writes to a write-ahead log since it was last synced."""
        return int(self._page.unsynced)

    @property
    def clock_offset_s(self) -> float:
        """How far the process's wall clock is ahead."""
        return float(self._page.clock_offset_ns) / 1e9

    @clock_offset_s.setter
    def clock_offset_s(self, seconds: float) -> None:
        self._page.clock_offset_ns = round(seconds * 1e9)

    @property
    def sync_delay_s(self) -> float:
        """How much longer each sync takes."""
        return float(self._page.sync_delay_ns) / 1e9

    @sync_delay_s.setter
    def sync_delay_s(self, seconds: float) -> None:
        self._page.sync_delay_ns = round(seconds * 1e9)

    def log(self) -> list[str]:
        """What failed, oldest first."""
        newest = self.failed
        entries = [self._page.log[n % _LOGGED] for n in range(max(0, newest - _LOGGED), newest)]
        return [f"{e.number} {Kind(e.kind).name} {e.name.decode()}: {e.fault}" for e in entries]

    def close(self) -> None:
        """Let go of whoever waits, and of the page."""
        self.release()
        self.disarm()
        del self._page
        self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def running(daemon: Daemon, *environs: Mapping[str, str], ready: bool = True) -> Iterator[Daemon]:
    """A daemon started with these additions to its environment, and killed in the end."""
    try:
        yield daemon.start(ready=ready, environ={k: v for environ in environs for k, v in environ.items()})
    finally:
        daemon.__exit__()


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of that size, mounted at `folder`; skips the test, and says why, without the right to."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system")
    folder.mkdir(exist_ok=True)
    options = f"size={megabytes}m,mode=0755"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "gruard-test", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, mode: str) -> None:
    """Make a mounted file system `ro` or `rw`."""
    done = subprocess.run(
        ["mount", "-o", f"remount,{mode}", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def fill(file: Path, leave_bytes: int = 0) -> int:
    """Write a file until the disk is full, then give `leave_bytes` back; the file's size."""
    with file.open("wb", buffering=0) as out, suppress(OSError):
        while out.write(bytes(65_536)):
            pass
    with file.open("r+b") as out:
        size = max(0, out.seek(0, os.SEEK_END) - leave_bytes)
        out.truncate(size)
    return size
