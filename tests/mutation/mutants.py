"""Change the durable path in one place at a time, and see whether a test notices.

    make mutants                                       all modules of mutants.toml; goes on where it was ended
    make mutants ARGS="--only pending core/flags"      some of them
    make mutants ARGS="--sample 500 --seed 1"          a share of each module
    make mutants ARGS="--report"                       what is known so far; --fresh forgets it

cosmic-ray finds the places and makes the changes, in copies of the checkout under .mutation. The tests
asked about a change are those that cover the place, as one run of them under coverage tells beforehand.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import queue
import random
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from cosmic_ray import plugins
from cosmic_ray.commands.init import init
from cosmic_ray.config import load_config
from cosmic_ray.modules import find_modules
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.tools.filters.operators_filter import OperatorsFilter
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkItem, WorkResult
from coverage import CoverageData
from dropping import DropStatement

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / ".mutation"
CONFIG = HERE / "mutants.toml"
SESSION = BUILD / "session.sqlite"
#: For each file of tests: what each of its tests covers, and how long it takes.
RECORDS = BUILD / "records"
#: Not needed in a copy.
LEFT_OUT = shutil.ignore_patterns(
    *(
        ".git",
        ".venv*",
        ".typing",
        ".mutation",
        "build",
        "dist",
        "*.egg-info",
        "__pycache__",
        ".*_cache",
        ".hypothesis",
    ),
    ".coverage*",
)

PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "asked", "-p", "no:cacheprovider"]
SAME = "--hypothesis-seed=0"

plugins.OPERATOR_PROVIDERS["gruard"] = {"DropStatement": DropStatement}


class Passages:
    """A module's source: which statement a line belongs to, and where a change is of no interest."""

    def __init__(self, source: str) -> None:
        self._tree = ast.parse(source)

    @cached_property
    def skipped(self) -> list[tuple[str, tuple[int, int], tuple[int, int]]]:
        """Why, from where and to where nothing is changed."""
        return [
            (why, (node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0))
            for why, node in self._uninteresting()
        ]

    def _uninteresting(self) -> Iterator[tuple[str, ast.expr | ast.stmt]]:
        for node in ast.walk(self._tree):
            match node:
                case ast.arg(annotation=ast.expr() as found) | ast.AnnAssign(annotation=found):
                    yield "annotation: never evaluated", found
                case ast.If(test=ast.Name("TYPE_CHECKING")):
                    yield "imports for the type checker: never executed", node
                case ast.Call(func=ast.Attribute(value=ast.Name("log"))):
                    yield "message to the log: told to people, not a part of the behaviour", node
                case ast.Call(func=ast.Name("dataclass")):
                    yield "frozen, slots: differ only for code that writes to it, which mypy forbids", node
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns:
                yield "annotation: never evaluated", node.returns

    def why_skipped(self, position: tuple[int, int]) -> str | None:
        """Why nothing is changed there, if that is so."""
        return next((why for why, start, end in self.skipped if start <= position < end), None)

    def statement(self, line: int) -> range:
        """The lines of the innermost statement; of one that holds others, its head."""
        found = range(line, line + 1)
        for node in ast.walk(self._tree):  # outer ones come first
            if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0):
                children = ast.iter_child_nodes(node)
                inner = [each for each in children if isinstance(each, ast.stmt | ast.match_case)]
                last = min((_first_line(each) - 1 for each in inner), default=node.end_lineno or 0)
                if line <= max(last, node.lineno):
                    found = range(node.lineno, max(last, node.lineno) + 1)
        return found

    def function(self, line: int) -> range:
        """The body of the innermost function around a line, or the whole module."""
        found = range(1, 1_000_000)
        for node in ast.walk(self._tree):
            if isinstance(node, ast.FunctionDef) and node.lineno <= line <= (node.end_lineno or 0):
                found = range(node.body[0].lineno, (node.end_lineno or 0) + 1)
        return found


def _first_line(node: ast.AST) -> int:
    return node.pattern.lineno if isinstance(node, ast.match_case) else node.lineno  # type: ignore[attr-defined]


class Witnesses:
    """Which tests cover which line, and how long each takes."""

    def __init__(self, budget_s: float) -> None:
        self._budget_s = budget_s
        self._seconds: dict[str, float] = {}
        self._by_line: dict[tuple[str, int], set[str]] = defaultdict(set)
        for times in RECORDS.glob("*.json"):
            self._seconds |= json.loads(times.read_text("utf-8"))
            data = CoverageData(basename=str(times.with_suffix(".coverage")))
            data.read()
            for module in data.measured_files():
                for line, names in data.contexts_by_lineno(module).items():
                    self._by_line[module, line] |= {name.partition("|")[0] for name in names}

    def of(self, module: str, lines: range) -> dict[str, float]:
        """Name -> usual seconds of the quickest tests that cover any of the lines, within the budget."""
        places = [(name, line) for name, line in self._by_line if name == module and line in lines]
        names = set().union(*map(self._by_line.__getitem__, places)) & self._seconds.keys()
        chosen, total = {}, 0.0
        for name in sorted(names, key=self._seconds.__getitem__):
            total += self._seconds[name]
            if chosen and total > self._budget_s:
                break
            chosen[name] = self._seconds[name]
        return chosen


def make_copy(name: str) -> Path:
    """A copy of the checkout whose packages are found before the installed ones."""
    copy = BUILD / name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
    links = copy / "links" / "gruard"
    links.mkdir(parents=True)
    for package in ("daemon", "models"):
        (links / package).symlink_to(copy / package)
    return copy


def environment(copy: Path, **more: str) -> dict[str, str]:
    """What a test run in a copy needs to know."""
    return {"PYTHONPATH": f"{copy / 'links'}:{HERE}", **more}


def record(settings: dict[str, Any], modules: Sequence[str]) -> None:
    """Run the tests, those of a file that has changed since: who covers what."""
    RECORDS.mkdir(exist_ok=True)
    due = []
    for name in settings["tests"]:
        times, tests = RECORDS / f"{name}.json", ROOT / "tests" / f"test_{name}.py"
        if not times.exists() or times.stat().st_mtime < tests.stat().st_mtime:
            due.append(times)
    if not due:
        return
    copy = make_copy("recording")
    rc = copy / "coveragerc"
    rc.write_text("\n    ".join(["[run]\nrelative_files = true\ninclude =", *modules]), "utf-8")
    for times in due:
        print(f"recording tests/test_{times.stem}.py", flush=True)
        more = {"MUTANTS_TIMES": str(times), "COVERAGE_FILE": str(times.with_suffix(".coverage"))}
        command = [*PYTEST, SAME, "-m", settings["marked"], f"tests/test_{times.stem}.py"]
        command += ["--cov", "--cov-context=test", "--cov-report=", f"--cov-config={rc}"]
        surroundings = {**os.environ, **environment(copy, **more)}
        done = subprocess.run(command, cwd=copy, env=surroundings, check=False, stdout=subprocess.PIPE)
        if done.returncode:
            times.unlink(missing_ok=True)
            sys.exit(f"mutants: the tests fail as they are\n{done.stdout.decode()}")


def begin(modules: Sequence[str]) -> None:
    """List every change that is to be made."""
    with use_db(SESSION) as session:
        init(find_modules([ROOT / module for module in modules]), session, {})
        passages = {module: Passages((ROOT / module).read_text("utf-8")) for module in modules}
        reasons: Counter[str] = Counter()
        for item in session.work_items:
            why = passages[_module(item)].why_skipped(item.mutations[0].start_pos)
            if why:
                session.set_result(item.job_id, WorkResult(WorkerOutcome.SKIPPED, output=why))
                reasons[why] += 1
        OperatorsFilter().main([str(SESSION), str(CONFIG)])
        left = len(session.pending_work_items)
        reasons["operators that mutants.toml excludes"] = session.num_work_items - left - reasons.total()
        print(f"{left} changes, left out: {dict(reasons)}", flush=True)


def _module(item: WorkItem) -> str:
    return Path(item.mutations[0].module_path).relative_to(ROOT).as_posix()


def drawn(items: Sequence[WorkItem], sample: int, seed: int) -> list[WorkItem]:
    """A share of each module's changes, as large as the module's share of all of them."""
    order = random.Random(seed)
    by_module = defaultdict(list)
    for item in sorted(items, key=lambda each: (_module(each), each.mutations[0].start_pos, _what(each))):
        by_module[_module(item)].append(item)
    return [
        item
        for found in by_module.values()
        for item in order.sample(found, min(len(found), -(-sample * len(found) // len(items))))
    ]


def _what(item: WorkItem) -> tuple[str, int]:
    return item.mutations[0].operator_name, item.mutations[0].occurrence


def execute(session: WorkDB, items: Sequence[WorkItem], settings: dict[str, Any], workers: int) -> None:
    """Make each change in a copy and run its tests there."""
    witnesses = Witnesses(settings["budget-s"])
    passages = {module: Passages((ROOT / module).read_text("utf-8")) for module in {*map(_module, items)}}
    copies: queue.Queue[Path] = queue.Queue()
    for number in range(workers):
        copies.put(make_copy(f"copy-{number}"))

    def judge(item: WorkItem) -> tuple[WorkItem, WorkResult]:
        copy, module = copies.get(), _module(item)
        line = item.mutations[0].start_pos[0]
        try:
            chosen = witnesses.of(module, passages[module].statement(line)) or witnesses.of(
                module, passages[module].function(line)
            )
            if not chosen:
                return item, WorkResult(WorkerOutcome.NO_TEST, "no test covers it", TestOutcome.SURVIVED)
            names = copy / "chosen.json"
            names.write_text(json.dumps(chosen), "utf-8")
            more = environment(copy, MUTANTS_CHOSEN=str(names))
            files = sorted({name.partition("::")[0] for name in chosen})
            command = ["env", "-C", str(copy), *(f"{key}={value}" for key, value in more.items())]
            command += [*PYTEST, SAME, "-x", *files]
            mutation = attrs.evolve(item.mutations[0], module_path=copy / module)
            result = mutate_and_test([mutation], shlex.join(command), 60.0 + 5 * sum(chosen.values()))
            return item, attrs.evolve(result, output=(result.output or "")[-2000:])
        finally:
            copies.put(copy)

    with ThreadPoolExecutor(workers) as pool:
        for done, (item, result) in enumerate(pool.map(judge, items), 1):
            session.set_result(item.job_id, result)
            outcome = result.test_outcome.value if result.test_outcome else "not run"
            where = f"{_module(item)}:{item.mutations[0].start_pos[0]}"
            print(f"{done}/{len(items)} {outcome} {where} {item.mutations[0].operator_name}", flush=True)


def report(session: WorkDB, modules: Sequence[str]) -> None:
    """The score of each module, then each change that no test noticed."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    survivors = []
    for item, result in session.completed_work_items:
        if result.worker_outcome is WorkerOutcome.SKIPPED:
            continue
        outcome = result.test_outcome.value if result.test_outcome else "incompetent"
        counts[_module(item)][outcome] += 1
        if outcome != "killed":
            survivors.append((_module(item), item.mutations[0].start_pos[0], outcome, item, result))
    total: Counter[str] = Counter()
    print("| Module | Mutants | Killed | Survived | Score |\n| --- | ---: | ---: | ---: | ---: |")
    for module in (*(name for name in modules if name in counts), None):
        found = counts[module] if module else total
        total += found if module else Counter()
        print(f"| {module or 'all'} | {found.total()} | {found['killed']} | {found['survived']}", end="")
        print(f" | {100 * found['killed'] / max(found.total(), 1):.1f} % |")
    for module, line, outcome, item, result in sorted(survivors, key=itemgetter(0, 1, 2)):
        print(f"\n{module}:{line} {item.mutations[0].operator_name} ({outcome})")
        changed = (result.diff or result.output or "").splitlines()
        print("\n".join(row for row in changed if row[:1] in "+-" and row[:3] not in {"---", "+++"}))


def main() -> None:
    """See the module's docstring."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--only", nargs="+", metavar="MODULE", help="the ends of their paths, without .py")
    parser.add_argument("--sample", type=int, metavar="N", help="about so many of all changes")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--workers", type=int, default=1, help="copies that are worked in at a time")
    parser.add_argument("--again", action="store_true", help="ask today's tests about the survivors")
    parser.add_argument("--fresh", action="store_true", help="forget what is known")
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args()

    modules = list(load_config(str(CONFIG))["module-path"])
    settings = tomllib.loads(CONFIG.read_text("utf-8"))["mutants"]
    if options.fresh:
        shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True, exist_ok=True)
    if not options.report:
        record(settings, modules)
        if not SESSION.exists():
            begin(modules)
    if options.only:
        modules = [name for name in modules if name.removesuffix(".py").endswith(tuple(options.only))]
    with use_db(SESSION) as session:
        if not options.report:
            run(session, modules, settings, options)
        report(session, modules)


def run(session: WorkDB, modules: list[str], settings: dict[str, Any], options: argparse.Namespace) -> None:
    """Make the changes that are wanted and have no result yet, or had one that a new test may alter."""
    known = {item.job_id: result for item, result in session.completed_work_items}
    items = [
        item
        for item in session.work_items
        if _module(item) in modules
        and (item.job_id not in known or known[item.job_id].worker_outcome is not WorkerOutcome.SKIPPED)
    ]
    if options.sample:
        print(f"seed {options.seed}: about {options.sample} of {len(items)} changes")
        items = drawn(items, options.sample, options.seed)
    if options.again:
        items = [item for item in items if item.job_id in known and not known[item.job_id].is_killed]
    else:
        items = [item for item in items if item.job_id not in known]
    items.sort(key=lambda item: (modules.index(_module(item)), item.mutations[0].start_pos, _what(item)))
    execute(session, items, settings, options.workers)


if __name__ == "__main__":
    main()
