"""The networks that a backtest can be run with, by the name that `--model` takes."""

from __future__ import annotations

from dataclasses import dataclass

from gruard.daemon.config_errors import choice_of
from gruard.daemon.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Network:
    """What a backtest must know of a network."""

    cell: str  # as a DetectorConfig names it
    causal: bool = True  # false: its scores depend on readings that came later, and the report says so


#: The live cells, then what they are compared with. Written out: a mistake is told before torch is loaded.
NETWORKS = {
    network.cell: network
    for network in (
        Network("gru"),
        Network("lstm"),
        Network("rnn"),
        Network("mlp"),
        Network("transformer"),
        Network("bigru", causal=False),
    )
}


def network_for(name: str) -> Network:
    """The network called `name`; whatever is to be comparable in a backtest is added here.

    Raises:
        ConfigError: there is none.
    """
    if name not in NETWORKS:
        raise ConfigError(f'--model: "{name}" is no network: it must be {choice_of(NETWORKS, name)}')
    return NETWORKS[name]
