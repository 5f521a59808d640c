"""The command line of `gruard tune`. Heavy imports happen when it runs, so that `--help` is instant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

TEXT = "Search the model settings on your own history and write those that are better, if any are."


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add what the command takes, besides the configuration file."""
    sub.add_argument(
        "path",
        type=Path,
        nargs="?",
        metavar="FILE|DIR",
        help="a recording (.csv, .npz), a directory of them, or a state directory (default: state.directory)",
    )
    sub.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        default=Path("gruard.tuned.toml"),
        help="where the configuration with better settings goes (default: %(default)s)",
    )
    sub.add_argument(
        "--trials", type=int, metavar="N", default=20, help="settings to try (default: %(default)s)"
    )
    sub.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        default=10.0,
        help="time for all of it; fewer settings are tried when it runs out (default: %(default)g)",
    )
    sub.add_argument("--seed", type=int, metavar="N", help="of every random choice (default: train.seed)")
    sub.add_argument(
        "--label",
        metavar="COLUMN",
        help="CSV column of known anomalies, 0 or 1 (default: label, anomaly or is_anomaly; '': none)",
    )
    sub.add_argument(
        "--exclude", metavar="COLUMN", action="append", default=[], help="leave a CSV column out"
    )
    sub.add_argument("--device", metavar="NAME", action="append", default=[], help="only this device")
    sub.add_argument(
        "--force", action="store_true", help="write the best even without a gain, and over an existing file"
    )


def tune(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    from gruard.daemon.backtest.tune_command import Request  # noqa: PLC0415 - see the module docstring
    from gruard.daemon.backtest.tune_command import tune as run  # noqa: PLC0415 - see the module docstring
    from gruard.daemon.settings import load  # noqa: PLC0415 - see the module docstring

    return run(
        load(arguments.config, os.environ),
        Request(
            path=arguments.path,
            config=arguments.config,
            out=arguments.out,
            trials=arguments.trials,
            minutes=arguments.minutes,
            seed=arguments.seed,
            labels=arguments.label,
            exclude=tuple(arguments.exclude),
            devices=tuple(arguments.device),
            force=arguments.force,
        ),
    )
