"""The command line of `gruard backtest`. Heavy imports happen when it runs, so that `--help` is instant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

TEXT = "Run the detector over recordings, as if live, and write a report."


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add what the command takes, besides the configuration file."""
    sub.add_argument(
        "path",
        type=Path,
        metavar="FILE|DIR",
        help="a recording (.csv, .npz), a directory of them, or the daemon's state directory or database",
    )
    sub.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where report.html, report.json and report.png go (default: NAME-backtest; none with --json)",
    )
    sub.add_argument(
        "--model",
        metavar="NAME",
        help="the network: gru, lstm or rnn, or to compare with: mlp, transformer, and in hindsight bigru"
        " (default: model.cell)",
    )
    sub.add_argument(
        "--warmup",
        metavar="N|SHARE",
        help="readings that only teach, or a share of them below 1 (default: as an npz says, else 0.2)",
    )
    sub.add_argument("--shared", action="store_true", help="one network for all devices with the same fields")
    sub.add_argument(
        "--label",
        metavar="COLUMN",
        help="CSV column of known anomalies, 0 or 1 (default: label, anomaly or is_anomaly; '': none)",
    )
    sub.add_argument(
        "--exclude", metavar="COLUMN", action="append", default=[], help="leave a CSV column out"
    )
    sub.add_argument("--device", metavar="NAME", action="append", default=[], help="only this device")
    sub.add_argument("--seed", type=int, metavar="N", help="of the training (default: train.seed)")
    sub.add_argument(
        "--json", action="store_true", help="the report as JSON on standard output, the summary on stderr"
    )


def backtest(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    from gruard.daemon.backtest.command import Request  # noqa: PLC0415 - see the module docstring
    from gruard.daemon.backtest.command import backtest as run  # noqa: PLC0415 - see the module docstring
    from gruard.daemon.settings import load  # noqa: PLC0415 - see the module docstring

    return run(
        load(arguments.config, os.environ),
        Request(
            path=arguments.path,
            out=arguments.out,
            model=arguments.model,
            warmup=arguments.warmup,
            shared=arguments.shared,
            labels=arguments.label,
            exclude=tuple(arguments.exclude),
            devices=tuple(arguments.device),
            seed=arguments.seed,
            json=arguments.json,
        ),
    )
