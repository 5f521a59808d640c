"""A database file read page by page, past any damage: SQLite's file format without SQLite.

SQLite gives up on a file whose first page is bad, on a tree whose inner page is bad, and on a log behind its
first bad frame. All rows lie in leaf pages that can be told by themselves, so the damage can be kept to the
page, mostly the row, that it hit. Sections named here are those of https://sqlite.org/fileformat2.html.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: SQLite's default, which every file of ours has.
PAGE_BYTES: Final = 4096
_LEAF, _INDEX_LEAF, _INDEX_INNER = 0x0D, 0x0A, 0x02  # section 1.6
#: More than any row of ours; a longer one is a damaged length.
_LONGEST_ROW: Final = 64 * 1024 * 1024

_LOG_HEAD: Final = struct.Struct(">8I")  # section 4.1: ..., salts at 4 and 5, checksum at 6 and 7
_LOG_MAGIC: Final = (0x377F0682, 0x377F0683)  # the second: checksums over big-endian words
_FRAME: Final = np.dtype([
    ("page", ">u4"), ("commit", ">u4"), ("salts", ">u4", 2), ("checksum", ">u4", 2), ("content", "V4096"),
])  # fmt: skip

#: Frames whose checksums are worked out at once: bounds the memory that a long log takes.
_AT_ONCE: Final = 256

_NUMBER_BYTES: Final = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}  # serial type -> size, section 2.1


@dataclass(frozen=True, slots=True)
class Cell:
    """One entry of a page, not decoded yet."""

    rowid: int | None  # None: of an index
    kinds: tuple[int, ...]  # serial types, one a column
    body: bytes  # the columns end to end

    def values(self) -> tuple[object, ...]:
        """The columns. Raises ValueError for bytes that are none."""
        values: list[object] = []
        at = 0
        for kind in self.kinds:
            size = column_bytes(kind)
            content = self.body[at : at + size]
            at += size
            values.append(_value(kind, content))
        return tuple(values)


class Log:
    """What a write-ahead log holds: the newest sound frame of each page up to the last sound commit.

    A frame's checksum goes on from the one of the frame before it, as it stands there. So each frame can be
    proven by its neighbour, a bad one further back notwithstanding; only SQLite stops at the first.

    `is_damaged`: committed groups lie behind a bad frame. `is_torn`: it is in the last group, which then
    counts as never committed. `lost_frames`: bad ones among those that count.
    """

    def __init__(self, content: bytes) -> None:
        head = content[: _LOG_HEAD.size].ljust(_LOG_HEAD.size, b"\0")
        numbers = _LOG_HEAD.unpack(head)
        count = max(0, len(content) - _LOG_HEAD.size) // _FRAME.itemsize
        frames = np.frombuffer(content, _FRAME, count, min(len(content), _LOG_HEAD.size))
        stored = np.vstack([np.array([numbers[6:]], np.uint32), frames["checksum"].astype(np.uint32)])
        # The magic says how words are read; in a damaged head either may be right.
        order = "<>"[numbers[0] & 1]
        words = np.frombuffer(head[:24], order + "u4").astype(np.uint32)
        head_sound = numbers[0] in _LOG_MAGIC and _chain(words, 0, 0) == numbers[6:]
        proven = [_follows(frames, stored, order) for order in (order if head_sound else "<>")]
        follows = max(proven, key=np.count_nonzero)
        salts = np.array(numbers[4:6], np.uint32)
        if not head_sound and follows.any():
            salts = frames["salts"][int(np.argmax(follows))].astype(np.uint32)
        ours = (frames["salts"] == salts).all(axis=1)
        sound = follows & ours
        commits = np.flatnonzero(sound & (frames["commit"] != 0))
        end = int(commits[-1]) + 1 if len(commits) else 0  # behind it nothing is committed
        bad = np.flatnonzero(~sound[:end])
        first_bad = int(bad[0]) if len(bad) else end
        if end and not head_sound:
            first_bad = 0
        # A bad frame in the last transaction is what a power cut leaves of one that was never acknowledged.
        before = ours[first_bad : end - 1] & (frames["commit"][first_bad : end - 1] != 0)
        self.is_damaged = first_bad < end and bool(before.any() or not head_sound)
        self.is_torn = first_bad < end and not self.is_damaged
        if self.is_torn:
            whole = commits[commits < first_bad]
            end = int(whole[-1]) + 1 if len(whole) else 0
        self.lost_frames = int(np.count_nonzero(~sound[:end]))
        self.pages = {int(frames["page"][at]): at for at in np.flatnonzero(sound[:end]).tolist()}
        self._frames = frames

    def page(self, number: int) -> bytes | None:
        """The newest content of a page, None if the log has none."""
        at = self.pages.get(number)
        return None if at is None else self._frames["content"][at].tobytes()


def log_of(path: Path) -> Log:
    """The write-ahead log beside a database, empty if there is none."""
    log = path.with_name(path.name + "-wal")
    return Log(log.read_bytes() if log.is_file() else b"")


class Pages:
    """The pages of a file with what its log knows better. Use as a context."""

    def __init__(self, path: Path) -> None:
        self.log = log_of(path)
        self._file = os.open(path, os.O_RDONLY) if path.is_file() else None
        size = 0 if self._file is None else os.fstat(self._file).st_size
        self.count = max([-(-size // PAGE_BYTES), *self.log.pages])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)

    def page(self, number: int) -> bytes:
        """A page, zeros where there is none or where the disk cannot read it."""
        content = self.log.page(number)
        if content is None and self._file is not None and 0 < number <= self.count:
            try:
                content = os.pread(self._file, PAGE_BYTES, (number - 1) * PAGE_BYTES)
            except OSError:
                content = b""
        return (content or b"").ljust(PAGE_BYTES, b"\0")

    def leaves(self) -> Iterator[Iterator[Cell | None]]:
        """The entries of each page in use, which are of one table or index; None for one that is damaged."""
        free = self._free()
        for number in range(1, self.count + 1):
            if number not in free:
                yield self._cells(number)

    def _cells(self, number: int) -> Iterator[Cell | None]:
        page = self.page(number)
        start = 100 if number == 1 else 0
        kind = page[start]
        if kind not in {_LEAF, _INDEX_LEAF, _INDEX_INNER}:
            return
        head = 12 if kind == _INDEX_INNER else 8
        entries = int.from_bytes(page[start + 3 : start + 5], "big")
        first = start + head
        for at in range(first, min(first + 2 * entries, PAGE_BYTES - 1), 2):
            try:
                yield self._cell(page, int.from_bytes(page[at : at + 2], "big"), kind)
            except (ValueError, IndexError):
                yield None

    def _cell(self, page: bytes, at: int, kind: int) -> Cell:
        if kind == _INDEX_INNER:
            at += 4  # the page below
        size, at = varint(page, at)
        rowid = None
        if kind == _LEAF:
            rowid, at = varint(page, at)
            rowid -= (rowid >> 63) << 64
        payload = self._payload(page, at, size, PAGE_BYTES - 35 if kind == _LEAF else 1002)
        end, at = varint(payload, 0)
        kinds = []
        while at < end:
            number, at = varint(payload, at)
            kinds.append(number)
        if at != end or end + sum(map(column_bytes, kinds)) != size:
            raise ValueError("its columns do not fill the row")
        return Cell(rowid, tuple(kinds), payload[end:])

    def _payload(self, page: bytes, at: int, size: int, most: int) -> bytes:
        """A row's bytes: on the page and, where they are too many, on a chain of others (section 1.6)."""
        if size > min(_LONGEST_ROW, self.count * PAGE_BYTES):
            raise ValueError("its length is damaged")
        if size <= most:
            local = size
        else:
            least = (PAGE_BYTES - 12) * 32 // 255 - 23
            local = least + (size - least) % (PAGE_BYTES - 4)
            local = local if local <= most else least
        parts = [page[at : at + local]]
        have = len(parts[0])
        following = int.from_bytes(page[at + local : at + local + 4], "big") if size > local else 0
        while have < size and following:
            content = self.page(following)
            following = int.from_bytes(content[:4], "big")
            parts.append(content[4 : 4 + size - have])
            have += len(parts[-1])
        if have != size:
            raise ValueError("its end is missing")
        return b"".join(parts)

    def _free(self) -> set[int]:
        """The pages that are not in use and still hold what was deleted (section 1.5).

        None, if the list is seen to be damaged: it must not hide what is in use. An entry that was changed
        into another page's number is not seen, and hides that page.
        """
        free: set[int] = set()
        trunk, count = struct.unpack_from(">2I", self.page(1), 32)
        while trunk:
            content = self.page(trunk)
            following, entries = struct.unpack_from(">2I", content)
            found = struct.unpack_from(f">{min(entries, PAGE_BYTES // 4 - 2)}I", content, 8)
            if trunk in free or not all(1 < number <= self.count for number in (trunk, *found)):
                return set()
            free.update((trunk, *found))
            trunk = following
        return free if len(free) == count else set()


def varint(content: bytes, at: int) -> tuple[int, int]:
    """A number of one to nine bytes, and where it ends. Raises IndexError at the end of the bytes."""
    value = 0
    for place in range(8):
        byte = content[at + place]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + place + 1
    return value << 8 | content[at + 8], at + 9


def column_bytes(kind: int) -> int:
    """How many bytes a column of this serial type takes."""
    if kind >= 12:
        return (kind - 12) // 2
    return 8 if kind == 7 else _NUMBER_BYTES.get(kind, 0)


def _value(kind: int, content: bytes) -> object:
    match kind:
        case 0:
            return None
        case 7:
            return float(struct.unpack(">d", content)[0])
        case 8 | 9:
            return kind - 8
        case 10 | 11:
            raise ValueError("there is no such kind of column")
    if kind in _NUMBER_BYTES:
        return int.from_bytes(content, "big", signed=True)
    return content.decode() if kind % 2 else content


def _chain(words: np.ndarray, first: int, second: int) -> tuple[int, int]:
    """The log's checksum of a few words, going on from two numbers (section 4.2)."""
    for one, other in zip(words[::2].tolist(), words[1::2].tolist(), strict=True):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return first, second


def _follows(frames: np.ndarray, stored: np.ndarray, order: str) -> np.ndarray:
    """Whether each frame's checksum goes on from the one before it, (N,); `stored` is (N + 1, 2)."""
    parts = [np.empty(0, bool)]
    for at in range(0, len(frames), _AT_ONCE):
        end = min(at + _AT_ONCE, len(frames))
        sums = _log_sums(frames[at:end], stored[at:end], order)
        parts.append((sums == stored[at + 1 : end + 1]).all(axis=1))
    return np.concatenate(parts)


def _log_sums(frames: np.ndarray, before: np.ndarray, order: str) -> np.ndarray:
    """The checksums that the frames should have, (N, 2), each going on from the one in `before`, (N, 2).

    The chain is a[n + 2] = a[n + 1] + a[n] + word[n], so it is linear and its weights are Fibonacci numbers.
    """
    raw = frames.view(np.uint8).reshape(len(frames), _FRAME.itemsize)
    words = np.hstack([raw[:, :8], raw[:, 24:]]).view(order + "u4").astype(np.uint32)  # (N, 1026)
    count = words.shape[1]
    weights = np.ones(count + 2, np.uint32)  # weights[n] is Fibonacci number n + 1
    with np.errstate(over="ignore"):
        for place in range(2, count + 2):
            weights[place] = weights[place - 1] + weights[place - 2]
        first = (words[:, :-1] * weights[: count - 1][::-1]).sum(axis=1, dtype=np.uint32)
        second = (words * weights[:count][::-1]).sum(axis=1, dtype=np.uint32)
        first += before[:, 0] * weights[count - 2] + before[:, 1] * weights[count - 1]
        second += before[:, 0] * weights[count - 1] + before[:, 1] * weights[count]
    return np.column_stack([first, second])
