"""What can be wrong with a model. The daemon turns it into a counted refusal."""

from __future__ import annotations


class ModelError(Exception):
    """A set of weights is damaged, foreign or not finite. It never goes live."""
