"""The training round that runs, on the disk, so that the next start can go on with it where it was cut off.

Two files in the state directory: what was asked, and how far the fit had come. Both are hints: what cannot be
written or read back costs a round, never a start.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import msgspec

from gruard.daemon.edges.trainer import TrainRequest  # noqa: TC001 -- msgspec reads the annotation
from gruard.models.weights import write_file

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

REQUEST_NAME, FIT_NAME = "training.round.json", "training.fit"
#: A round that was cut off so often may be what cuts it off: it is begun no more.
MOST_STARTS = 4
#: A fit has the weights, twice as much of the optimiser, and the best weights: far below this.
LARGEST_BYTES = 100_000_000


class CutOff(msgspec.Struct, frozen=True):
    """A round that was begun and has not ended."""

    request: TrainRequest
    held: bool  # scoring waited for it
    starts: int = 1


class KeptRound:
    """At most one, of one state directory."""

    def __init__(self, directory: Path) -> None:
        self._asked, self._fit = directory / REQUEST_NAME, directory / FIT_NAME

    def begin(self, round_: CutOff) -> None:
        """Keep what a round is asked, before it begins."""
        try:
            write_file(self._asked, msgspec.json.encode(round_))
        except OSError as error:
            log.warning("a training round that is cut off now will not be gone on with: %s", error)

    def find(self) -> CutOff | None:
        """The round that was cut off, to be begun once more; None where there is none or it was too often."""
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
            found = msgspec.json.decode(self._asked.read_bytes(), type=CutOff)
            if found.starts < MOST_STARTS:
                return msgspec.structs.replace(found, starts=found.starts + 1)
        self.forget()
        return None

    def forget(self) -> None:
        """The round has ended."""
        for path in (self._asked, self._fit):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


class KeptFit:
    """How far the fit of the running round has come: the child's side."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FIT_NAME

    def load(self) -> bytes | None:
        """What was saved last, or None."""
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            return file.read(LARGEST_BYTES)
        return None

    def save(self, content: bytes) -> None:
        """Keep this in place of what was there; a disk that refuses keeps what it has."""
        with contextlib.suppress(OSError):
            write_file(self._path, content)
