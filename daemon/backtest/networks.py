"""The networks that a backtest can be run with, by the name that `--model` takes."""

from __future__ import annotations

from dataclasses import dataclass

from gruard.daemon.config_errors import choice_of
from gruard.daemon.errors import ConfigError
from gruard.models.cells import CELLS


@dataclass(frozen=True, slots=True)
class Network:
    """What a backtest must know of a network."""

    cell: str  # as a DetectorConfig names it
    causal: bool = True  # false: its scores depend on readings that came later, and the report says so


def network_for(name: str) -> Network:
    """The network called `name`; whatever is to be comparable in a backtest is added here.

    Raises:
        ConfigError: there is none.
    """
    if name not in CELLS:
        raise ConfigError(f'--model: "{name}" is no network: it must be {choice_of(CELLS, name)}')
    return Network(name)
