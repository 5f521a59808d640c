"""The daemon: a pure core (records, decoders, core) inside thin edges, wired by `service`."""

__version__ = "0.1.0"
