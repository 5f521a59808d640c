"""Fuzz one target, or all of them one after the other.

    cd tests && ../.venv/bin/python -m fuzz json --seconds 600     guided by coverage, where atheris is there
    cd tests && ../.venv/bin/python -m fuzz all --blind --inputs 100000 --seed 7

Guided runs need atheris (in the extra `test`, where it has wheels), which learns which inputs reach new
code. Blind runs need nothing and are repeatable: seed and number name an input. Prints one JSON line a
target; a failing input is written to --failures and the run ends with status 1. Make it a fixed case then.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from zlib import crc32

from fuzz.mutations import damaged, grammatical, random_bytes
from fuzz.targets import ENDS, TARGETS, Target

FAILURES = Path(tempfile.gettempdir()) / "gruard-fuzz"

#: Blind inputs that are drawn before memory is measured: caches have their fill by then.
WARM_UP = 10_000


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--seconds", type=int, default=30, help="of a guided run (default: %(default)s)")
    parser.add_argument("--inputs", type=int, default=20_000, help="of a blind run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="0 draws one (default: %(default)s)")
    parser.add_argument("--blind", action="store_true", help="repeatable, without atheris")
    parser.add_argument(
        "--failures", type=Path, default=FAILURES, help="folder for bad inputs (default: %(default)s)"
    )
    options = parser.parse_args()
    seed = options.seed or random.SystemRandom().randrange(1, 2**31)
    if options.target == "all":
        return _each_in_its_own_process(options, seed)
    target = TARGETS[options.target]
    if options.blind or find_spec("atheris") is None:
        return blind(target, options.inputs, seed, options.failures)
    return guided(target, options.seconds, seed, options.failures)


def _each_in_its_own_process(options: argparse.Namespace, seed: int) -> int:
    status = 0
    for name in TARGETS:
        command = [
            sys.executable,
            "-m",
            "fuzz",
            name,
            "--seed",
            str(seed),
            "--failures",
            str(options.failures),
        ]
        command += ["--seconds", str(options.seconds), "--inputs", str(options.inputs)]
        command += ["--blind"] * options.blind
        status |= subprocess.run(command, check=False).returncode != 0
    return status


def blind(target: Target, inputs: int, seed: int, failures: Path) -> int:
    """Run so many drawn inputs."""
    rng = random.Random(seed)
    seeds = target.seeds()
    began_s, settled_kib = time.monotonic(), 0
    for number in range(inputs):
        if number == WARM_UP:
            settled_kib = resident_kib()
        content = _drawn(rng, target, seeds)
        try:
            target.run(content)
        except BaseException:
            _keep(target, content, failures, f"seed {seed}, input {number}")
            raise
    grown = resident_kib() / settled_kib - 1 if settled_kib else 0.0
    _tell(target, seed=seed, inputs=inputs, seconds=time.monotonic() - began_s, grown=grown)
    return 0


def _drawn(rng: random.Random, target: Target, seeds: list[bytes]) -> bytes:
    kind = rng.random()
    if kind < 0.2:
        return random_bytes(rng)
    if target.name == "json" and kind < 0.6:
        return grammatical(rng)
    return damaged(rng, seeds)


def guided(target: Target, seconds: int, seed: int, failures: Path) -> int:
    """Run atheris from the target's seeds; what it learns is kept beside the failures."""
    import atheris

    with atheris.instrument_imports(include=list(target.modules)):
        target.run(target.seeds()[0])
    learnt = failures / f"corpus-{target.name}"
    learnt.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(target.seeds()):
        (learnt / f"seed-{number}").write_bytes(content)

    def run(content: bytes) -> None:
        try:
            target.run(content)
        except BaseException:
            _keep(target, content, failures, f"guided, seed {seed}")
            raise

    flags = [f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={target.most_bytes}", "-verbosity=0"]
    flags += [f"-artifact_prefix={failures}/", "-rss_limit_mb=2048", "-timeout=20", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *flags, str(learnt)], run)
    atheris.Fuzz()  # ends the process
    return 0


def resident_kib() -> int:
    """Memory of this process in KiB, as the kernel counts it."""
    status = Path("/proc/self/status").read_text("ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")))


def _tell(target: Target, **figures: float) -> None:
    rounded = {name: round(figure, 4) for name, figure in figures.items()}
    sys.stdout.write(json.dumps({"target": target.name, **rounded, "ends": dict(ENDS)}) + "\n")


def _keep(target: Target, content: bytes, failures: Path, where: str) -> None:
    failures.mkdir(parents=True, exist_ok=True)
    path = failures / f"{target.name}-{crc32(content):08x}"
    path.write_bytes(content)
    sys.stderr.write(f"{target.name}: {where}: {content[:200]!r} is kept as {path}\n")


if __name__ == "__main__":
    sys.exit(main())
