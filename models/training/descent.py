"""Gradient descent: AdamW (Loshchilov & Hutter 2019) along a one-cycle schedule (Smith & Topin 2018).

The numbers are those of torch.optim's AdamW and OneCycleLR, which are not used for what they bring with them:
the first use of an optimiser loads torch's compiler, 80 MB and 1.4 s of a process that lives for seconds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

#: The rate begins at this share of its top and ends at that share of where it began.
FIRST_SHARE, LAST_SHARE = 1 / 25, 1e-4
#: The mean of gradients forgets the faster the higher the rate is: the share kept at its top and elsewhere.
KEPT_AT_TOP, KEPT = 0.85, 0.95
#: The mean of squared gradients; what keeps its root from 0.
KEPT_SQUARES, LEAST_ROOT = 0.999, 1e-8


class Descent:
    """Moves parameters against their gradients, at most `steps` times. What it remembers can be stored."""

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], steps: int, top: float, decay: float
    ) -> None:
        self.parameters = list(parameters)
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters]
        self.done = 0
        self._steps, self._top, self._decay = steps, top, decay

    def forget_gradients(self) -> None:
        """Begin the next step's gradients at nothing."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move once."""
        rate, kept = self._now()
        self.done += 1
        for p, mean, square in zip(self.parameters, self.means, self.squares, strict=True):
            if p.grad is None:
                continue
            mean.lerp_(p.grad, 1.0 - kept)
            square.mul_(KEPT_SQUARES).addcmul_(p.grad, p.grad, value=1.0 - KEPT_SQUARES)
            root = square.sqrt().div_(math.sqrt(1.0 - KEPT_SQUARES**self.done)).add_(LEAST_ROOT)
            p.mul_(1.0 - rate * self._decay)
            p.addcdiv_(mean, root, value=-rate / (1.0 - kept**self.done))

    def _now(self) -> tuple[float, float]:
        """Rate and share of the mean that is kept, at this step."""
        total = self._steps + 1
        top = max(0.1, 2 / total) * total - 1  # the rise takes 10 %, and at least one whole step
        first = self._top * FIRST_SHARE
        if self.done <= top:
            share = self.done / top
            return _cosine(first, self._top, share), _cosine(KEPT, KEPT_AT_TOP, share)
        share = (self.done - top) / (total - 1 - top)
        return _cosine(self._top, first * LAST_SHARE, share), _cosine(KEPT_AT_TOP, KEPT, share)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2.0 * (1.0 + math.cos(math.pi * share))
