"""F8 of the fault matrix: files of the state directory damaged at random.

Every start works and nothing false is read.

The number of files is GRUARD_TORTURE_FILES (2,000 for a release), the first seed GRUARD_TORTURE_SEED.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import support_damage
from support_damage import GROUP, GROUPS, Found, Truth, damage, make_old, read_back, work_on
from support_database import NOW_S
from support_models import random_tensors

from gruard.daemon.edges.database import Database, open_database, open_readonly
from gruard.daemon.errors import StateError
from gruard.models import weights
from gruard.models.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = int(os.environ.get("GRUARD_TORTURE_FILES", "150"))
SEED = int(os.environ.get("GRUARD_TORTURE_SEED", "1"))
#: Ways to damage the database, and how often each is drawn.
DATABASE_FILES = {"gruard.db": 10, "gruard.db-wal": 7, "gruard.db-shm": 1, "gruard.lock": 1}
#: Damage of one byte, which must cost no more than the page it is on.
SMALL = {"flip", "byte", "head", "page head"}
#: Seeds that found something: they are run every time.
FOUND = (140, 794, 1480, 3284, 5456, 6406, 20_265)
#: As many readings as fit on a page.
PAGEFUL = 80


class Plant:
    """One history in the forms in which a start may find it."""

    def __init__(self, directory: Path) -> None:
        self.forms = {name: directory / name for name in ("closed", "crashed", "early", "old")}
        copies = {40: self.forms["early"], GROUPS: self.forms["crashed"]}
        self.truth: Truth = support_damage.build(self.forms["closed"], copies=copies)
        make_old(self.forms["old"], self.forms["closed"])
        self.whole: dict[str, Found] = {}
        for name, form in self.forms.items():
            shutil.copytree(form, directory / "copy")
            with open_database(directory / "copy", now_s=NOW_S) as database:
                assert database.set_aside is None
                self.whole[name] = read_back(database, self.truth)
                assert database.skipped_rows == 0
            shutil.rmtree(directory / "copy")


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Plant:
    with pytest.MonkeyPatch.context() as patch:
        support_damage.shorten(patch)
        return Plant(tmp_path_factory.mktemp("plant"))


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: what a flush costs is not what is tested."""
    memory = Path("/dev/shm")  # noqa: S108 - made under a name of its own
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as name:
        yield Path(name)


@pytest.mark.parametrize("part", range(10))
def test_damaged_database_starts_and_tells_nothing_false(
    plant: Plant, directory: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    """A start with any file of the database damaged gives what was written or counts it as lost."""
    support_damage.shorten(monkeypatch)
    outcomes: Counter[str] = Counter()
    for seed in (*FOUND[part::10], *range(SEED + part, SEED + FILES, 10)):
        rng = random.Random(seed)
        form = rng.choices(["closed", "crashed", "old"], [5, 6, 1])[0]
        copy = Path(tempfile.mkdtemp(dir=directory))
        shutil.copytree(plant.forms[form], copy, dirs_exist_ok=True)
        there = [name for name in DATABASE_FILES if (copy / name).exists()]
        name = rng.choices(there, [DATABASE_FILES[name] for name in there])[0]
        kind = damage(copy / name, rng, plant.forms["early"])
        case = f"seed {seed}: {kind} in {name} of {form}"
        print(case)  # noqa: T201 - shown when it fails
        outcomes[_start(copy, plant, form, name, kind, case)] += 1
        shutil.rmtree(copy)
    assert outcomes.total() > 0
    if FILES >= 150:
        assert {"sound", "salvaged"} <= set(outcomes)


def _start(directory: Path, plant: Plant, form: str, name: str, kind: str, case: str) -> str:
    sealed = form != "old"
    try:
        with open_readonly(directory) as reader:
            read_back(reader, plant.truth, sealed=sealed)
    except StateError:
        pass
    with open_database(directory, now_s=NOW_S) as database:
        found = read_back(database, plant.truth, sealed=sealed)
        _check_accounts(database, found, plant, form, name, kind, case)
        assert database.next_lsn > max(found.journal | found.history, default=0), case
        added = work_on(database, plant.truth)
        outcome = "sound" if database.set_aside is None else "salvaged"
    with open_database(directory, now_s=NOW_S) as database:
        assert database.set_aside is None, case
        again = read_back(database, plant.truth, sealed=sealed)
        assert again.history == found.history | added, case
        assert added <= again.journal, case
    return outcome


def _check_accounts(
    database: Database, found: Found, plant: Plant, form: str, name: str, kind: str, case: str
) -> None:
    """What is missing is counted, and small damage costs little."""
    whole = plant.whole[form]
    missing = (whole.history | whole.journal) - (found.history | found.journal)
    lost = database.salvaged.lost if database.salvaged else {}
    counted = database.skipped_rows + sum(lost.values())
    fewer = any(
        getattr(found, what) < getattr(whole, what)
        for what in ("alerts", "outbox", "models", "checkpoints", "deliveries")
    )
    told = f"{case}: missing {sorted(missing)[:9]}, lost {lost}, left out {database.skipped_rows}"
    if name == "gruard.db-wal" and database.set_aside is None:
        # SQLite takes a log up to where it ends: no half of a group may be there.
        newest = max(found.journal | found.history)
        assert newest % GROUP == 0, told
        assert database.meta("key") == f"value-{newest // GROUP}", told
        if kind in SMALL:
            assert newest >= max(whole.journal) - GROUP, told
        return
    if name in {"gruard.db-shm", "gruard.lock"}:
        assert found == whole, told
    # A file that is gone, or as it once was, does not show what it held.
    if kind not in {"missing", "early"} and (missing or fewer or found.sums != whole.sums):
        assert counted > 0 or database.set_aside is not None, told
    if kind in SMALL and form != "old":
        assert len(missing) <= min(PAGEFUL, counted), told
        needed = {lsn for lsn in whole.journal if lsn >= whole.keep_from}
        if needed <= found.journal:
            assert found.sums == whole.sums, told


def test_damaged_model_is_refused_or_unchanged(tmp_path: Path) -> None:
    """A model whose manifest or weights were damaged is refused, or is what it was; never anything else."""
    config, tensors = random_tensors()
    package = weights.seal(
        group="plant", source="plant", fields=("f0", "f1", "f2"), cell=config.cell, hidden=8, layers=1,
        created_s=NOW_S, parent=None, span_start_s=NOW_S - 9, span_end_s=NOW_S, rows=9, devices=("pump-1",),
        skill=0.5, report={}, tensors=tensors,
    )  # fmt: skip
    (tmp_path / "whole").mkdir()
    manifest = weights.write(tmp_path / "whole", package)
    refused = 0
    for seed in range(SEED, SEED + max(20, FILES // 5)):
        rng = random.Random(seed)
        directory = tmp_path / str(seed)
        shutil.copytree(tmp_path / "whole", directory)
        file = rng.choice(sorted(directory.iterdir()))
        kind = damage(file, rng, tmp_path / "whole")
        print(f"seed {seed}: {kind} in {file.name}")  # noqa: T201 - shown when it fails
        try:
            read = weights.read(directory, package.manifest.id)
        except ModelError:
            refused += 1
        else:
            assert read.manifest == package.manifest
            assert all((read.tensors[name] == tensor).all() for name, tensor in package.tensors.items())
        shutil.rmtree(directory)
    assert manifest.exists()
    assert refused > 0
