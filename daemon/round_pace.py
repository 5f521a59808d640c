"""The pace of a running round: it waits while scoring is behind, and the log tells how far it is."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from gruard.daemon.core.overload import Overload

if TYPE_CHECKING:
    from gruard.daemon.edges.trainer import Trainer

log = logging.getLogger(__name__)

#: Readings that wait to be scored, for long, let a round wait: a full batch.
PAUSE_AT = 512
#: How often the log tells how far a round has come, beside each new stage.
TOLD_EVERY_S = 30.0


class Pace:
    """Of the rounds of one trainer."""

    def __init__(self, trainer: Trainer, pause_at: int) -> None:
        self.paused = False  # by command: a round that runs waits
        self._trainer = trainer
        self._overload = Overload(pause_at)
        self._stage, self._told_s = "", 0.0

    def keep(self, waiting: int, now: float) -> None:
        """Let the round wait or go on; `waiting` readings are to be scored and cannot be yet."""
        self._overload.note(waiting, now)
        trainer, wait = self._trainer, self.paused or self._overload.is_on
        if wait and not trainer.paused:
            why = "asked to" if self.paused else "scoring is behind"
            log.info("training of %s waits: %s", trainer.group, why)
            trainer.pause(now)
        elif trainer.paused and not wait:
            log.info("training of %s goes on", trainer.group)
            trainer.go_on(now)

    def tell(self, now: float) -> None:
        """Log how far the round has come, where that is news."""
        progress = self._trainer.progress
        if progress is not None and (progress.stage != self._stage or now - self._told_s >= TOLD_EVERY_S):
            self._stage, self._told_s = progress.stage, now
            log.info("training of %s: %s, %.0f %%", self._trainer.group, progress.stage, 100 * progress.done)
