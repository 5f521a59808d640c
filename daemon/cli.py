"""The command line: one function a command. Each imports what it needs, so that `--help` is instant."""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gruard.daemon import __version__, cli_alerts, cli_backtest, cli_commands, cli_models, cli_tune
from gruard.daemon.cli_tables import print_rows
from gruard.daemon.errors import BrokerError, ConfigError, GruardError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gruard.daemon.settings import Settings

#: Exit statuses, after sysexits.h.
OK, INTERNAL, UNREACHABLE, BAD_CONFIG = 0, 70, 75, 78

_EPILOG = "Exit status: 0 ok, 78 bad configuration, 75 broker unreachable, 70 anything else."


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. Never a traceback for a user's mistake."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return BAD_CONFIG
    except BrokerError as error:
        print(f"gruard: {error}", file=sys.stderr)
        return UNREACHABLE
    except GruardError as error:
        print(f"gruard: {error}", file=sys.stderr)
        return INTERNAL
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gruard", description="Streaming anomaly detection for MQTT sensors.", epilog=_EPILOG
    )
    parser.add_argument("--version", action="version", version=f"gruard {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, command: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, epilog=_EPILOG)
        sub.set_defaults(command=command)
        return sub

    def with_config(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub.add_argument("-c", "--config", type=Path, metavar="FILE", help="configuration file (TOML)")
        return sub

    with_config(add("run", _run, "Run the daemon in the foreground."))
    with_config(add("check-config", _check_config, "Check the configuration and print what is in effect."))

    sub = with_config(add("replay", _replay, "Run a recording through the engine, without a broker."))
    sub.add_argument("file", type=Path, metavar="FILE.csv", help="recording with a header row")
    sub.add_argument(
        "--source", metavar="NAME", help="the configured source to treat it as (default: the first)"
    )
    sub.add_argument(
        "--device", metavar="ID", help="device id (default: a device column, or the file's name)"
    )
    sub.add_argument("--exclude", metavar="COLUMN", action="append", default=[], help="leave a column out")
    sub.add_argument(
        "--fresh", action="store_true", help="train anew; do not follow the state directory's models"
    )
    sub.add_argument("--scores", type=Path, metavar="OUT.csv", help="write the score of every reading")

    sub = with_config(add("backtest", cli_backtest.backtest, cli_backtest.TEXT))
    cli_backtest.add_arguments(sub)
    cli_tune.add_arguments(with_config(add("tune", cli_tune.tune, cli_tune.TEXT)))

    sub = with_config(add("devices", _devices, "List the devices that the state directory knows."))
    sub.add_argument("action", choices=["list"], help="list them")
    sub.add_argument("--json", action="store_true", help="one JSON array")

    cli_alerts.add_arguments(with_config(add("alerts", cli_alerts.alerts, cli_alerts.TEXT)))

    cli_models.add_arguments(with_config(add("models", cli_models.models, cli_models.TEXT)))

    cli_commands.add_arguments(with_config(add("train", cli_commands.train, cli_commands.TEXT)))

    sub = add("simulate", _simulate, "Publish a simulated pump fleet to a broker.")
    sub.add_argument("--host", default="127.0.0.1", help="broker (default: %(default)s)")
    sub.add_argument("--port", type=int, default=1883, help="its port (default: %(default)s)")
    sub.add_argument("--pumps", type=int, default=12, help="pumps (default: %(default)s)")
    sub.add_argument("--speed", type=float, default=1.0, help="times real time (default: %(default)s)")
    sub.add_argument("--seconds", type=float, default=60.0, help="how long (default: %(default)s)")
    sub.add_argument("--faults", action="store_true", help="break four of them on the way")
    sub.add_argument("--seed", type=int, default=0, help="of every random choice (default: %(default)s)")

    sub = add("demo", _demo, "Broker, daemon, live telemetry and a pump fleet with faults: three minutes.")
    sub.add_argument("--seed", type=int, default=0, help="of the simulated fleet (default: %(default)s)")
    sub.add_argument("--plain", action="store_true", help="plain lines, no live screen")
    return parser


def _load(arguments: argparse.Namespace) -> Settings:
    from gruard.daemon.settings import load  # noqa: PLC0415 - see the module docstring

    settings: Settings = load(arguments.config, os.environ)
    return settings


def _run(arguments: argparse.Namespace) -> int:
    settings = _load(arguments)
    if not settings.sources:
        raise ConfigError(
            f"{arguments.config or 'configuration'}: sources: at least one [[sources]] is needed"
        )
    from gruard.daemon import logs  # noqa: PLC0415 - see the module docstring
    from gruard.daemon.service import Service  # noqa: PLC0415 - see the module docstring

    logs.configure(settings.log.level, settings.log.format, sys.stderr, os.environ)
    faulthandler.enable()  # the watchdog ends a stuck worker with SIGABRT: where it was is worth a line
    return Service(settings, os.environ).run()


def _check_config(arguments: argparse.Namespace) -> int:
    from gruard.daemon.settings import effective, load_traced  # noqa: PLC0415 - see the module docstring

    print(effective(*load_traced(arguments.config, os.environ)), end="")
    return OK


def _replay(arguments: argparse.Namespace) -> int:
    from gruard.daemon import wiring  # noqa: PLC0415 - see the module docstring
    from gruard.daemon.inspection import switches  # noqa: PLC0415 - see the module docstring
    from gruard.daemon.recording import open_recording  # noqa: PLC0415 - see the module docstring
    from gruard.daemon.records import SourceOptions  # noqa: PLC0415 - see the module docstring
    from gruard.daemon.replay import Replay  # noqa: PLC0415 - see the module docstring

    settings = _load(arguments)
    options = wiring.engine_options(settings)
    by_name = {source.name: source for source in options.sources}
    if arguments.source is not None and arguments.source not in by_name:
        known = ", ".join(by_name) or "none"
        raise ConfigError(f'--source: no source is called "{arguments.source}" (configured: {known})')
    source = by_name.get(arguments.source) or next(
        iter(options.sources), SourceOptions("recording", "recording/{device}")
    )
    source = dataclasses.replace(source, exclude=(*source.exclude, *arguments.exclude))
    recording = open_recording(arguments.file, source, arguments.device)
    options = dataclasses.replace(options, sources=(recording.source,))
    with ExitStack() as stack:
        scores = None
        if arguments.scores is not None:
            scores = stack.enter_context(arguments.scores.open("w", newline="", encoding="utf-8"))
        player = Replay(
            options,
            wiring.training_settings(settings),
            base=settings.alerts.base,
            tell=lambda payload: print(payload.decode(), flush=True),
            scores=scores,
            follow=() if arguments.fresh else switches(settings.state.directory),
        )
        summary = player.run(recording)
    refused = "".join(f", {n} {reason}" for reason, n in sorted(summary.refused.items()))
    models = ", ".join(summary.models.values()) or "none: the baseline scored"
    print(
        f"{summary.scored} readings scored, {summary.duplicates} duplicates{refused};"
        f" {summary.alerts} alerts; model {models}",
        file=sys.stderr,
    )
    return OK


def _devices(arguments: argparse.Namespace) -> int:
    from gruard.daemon.inspection import devices  # noqa: PLC0415 - see the module docstring

    return print_rows(devices(_load(arguments)), as_json=arguments.json)


def _simulate(arguments: argparse.Namespace) -> int:
    from gruard.daemon.demo.runner import simulate  # noqa: PLC0415 - see the module docstring

    sent = simulate(
        arguments.host,
        arguments.port,
        arguments.pumps,
        arguments.speed,
        arguments.seconds,
        faults=arguments.faults,
        seed=arguments.seed,
    )
    print(f"{sent} readings of {arguments.pumps} pumps published")
    return OK


def _demo(arguments: argparse.Namespace) -> int:
    from gruard.daemon.demo.runner import run_demo  # noqa: PLC0415 - see the module docstring

    return run_demo(seed=arguments.seed, plain=arguments.plain or None)
