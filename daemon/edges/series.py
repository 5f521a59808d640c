"""Series with bounded labels: neither hostile names nor ten thousand devices can break or swell a scrape."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prometheus_client import Counter, Gauge

#: A label longer than this is cut; a device id may have 64 characters, a group's name two of them.
MAX_LABEL_LENGTH = 160
#: Reasons that no fixed list names get a series of their own up to this number, then share "other".
SPARE_REASONS = 16


def clean_label(text: str) -> str:
    """Return `text` fit for a label: printable, at most MAX_LABEL_LENGTH characters, never empty.

    A lone surrogate would make every later scrape fail and a newline would confuse whoever reads the
    page. A changed label carries a hash of the original, so two names never fall into one series.
    """
    if text and len(text) <= MAX_LABEL_LENGTH and text.isprintable():
        return text
    mark = hashlib.blake2s(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    head = text[: MAX_LABEL_LENGTH - len(mark) - 1]
    return "".join(char if char.isprintable() else "?" for char in head) + "~" + mark


class ReasonCounter:
    """A counter with one label whose values are bounded: the known ones start at 0."""

    def __init__(self, counter: Counter, known: Sequence[str], *, spare: int = 0) -> None:
        self._counter = counter
        self._series = {value: counter.labels(value) for value in known}
        self._limit = len(known) + spare

    def add(self, value: str, n: int) -> None:
        """Count `n` under a value; an unknown one takes a spare series, or "other" when none is left."""
        if value not in self._series:
            if len(self._series) >= self._limit:
                self._counter.labels("other").inc(n)
                return
            self._series[value] = self._counter.labels(clean_label(value))
        self._series[value].inc(n)


class Labelled:
    """Names that may have series of their own: the first `limit` of them; the others are counted."""

    def __init__(self, limit: int, unlabelled: Gauge) -> None:
        self._limit = limit
        self._labels: dict[str, str] = {}
        self._refused: set[str] = set()
        self._unlabelled = unlabelled

    def label(self, name: str) -> str | None:
        """The label of a name, or None when there are no series left."""
        label = self._labels.get(name)
        if label is not None:
            return label
        if len(self._labels) >= self._limit:
            if name not in self._refused:
                self._refused.add(name)
                self._unlabelled.set(len(self._refused))
            return None
        self._labels[name] = label = clean_label(name)
        self._refused.discard(name)
        self._unlabelled.set(len(self._refused))
        return label

    def forget(self, name: str) -> str | None:
        """Give the place of a name free; its label, if it had one."""
        self._refused.discard(name)
        self._unlabelled.set(len(self._refused))
        return self._labels.pop(name, None)
