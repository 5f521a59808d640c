"""Model packages: what was sealed comes back exactly, or a ModelError says why not. Never anything else."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle  # noqa: TID251 -- written as an attack, never loaded
import struct
import tracemalloc
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gruard.models import weights
from gruard.models.cells import NetworkConfig
from gruard.models.errors import ModelError
from gruard.models.weights import ModelPackage, check_network, read, seal, write

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Tensors = dict[str, NDArray[Any]]


def tensors(cell: str = "gru", layers: int = 1, seed: int = 0) -> Tensors:
    random = np.random.default_rng(seed)
    shapes = NetworkConfig(cell, 5, 8, layers, 2).weight_shapes()
    network = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return network | {
        "gate": np.array([0.25, 1.0], np.float32),
        "device.location": random.standard_normal((3, 2)),
        "device.rows": np.array([40, 50, 60], np.int64),
    }


def package(**changes: Any) -> ModelPackage:
    entries: dict[str, Any] = {
        "tensors": tensors(),
        "group": "plant/temperature+pressure",
        "source": "plant",
        "fields": ("temperature", "pressure"),
        "cell": "gru",
        "hidden": 8,
        "layers": 1,
        "created_s": 1_700_000_000.25,
        "parent": None,
        "span_start_s": 1_600_000_000.0,
        "span_end_s": 1_650_000_000,
        "rows": 150,
        "devices": ("a", "b/ü", "c"),
        "skill": 0.125,
        "report": {"steps": 150, "loss": 0.5, "why": "steps", "better": True, "old": None},
    }
    return seal(**(entries | changes))


def same(a: ModelPackage, b: ModelPackage) -> bool:
    return a.manifest == b.manifest and all(
        name in a.tensors
        and name in b.tensors
        and a.tensors[name].dtype == b.tensors[name].dtype
        and a.tensors[name].shape == b.tensors[name].shape
        and a.tensors[name].tobytes() == b.tensors[name].tobytes()
        for name in a.tensors.keys() | b.tensors.keys()
    )


def files(directory: Path, sealed: ModelPackage) -> tuple[Path, Path]:
    return directory / f"{sealed.manifest.id}.safetensors", directory / f"{sealed.manifest.id}.json"


def plant(directory: Path, stored: bytes, **entries: Any) -> str:
    """Put a foreign tensor file beside a manifest whose id and digest fit it, as an attacker could."""
    id_ = hashlib.sha256(stored).hexdigest()[:12]
    manifest = replace(package().manifest, id=id_, **entries)
    manifest = replace(manifest, sha256=weights._digest(manifest, stored))
    (directory / f"{id_}.safetensors").write_bytes(stored)
    (directory / f"{id_}.json").write_bytes(msgspec.json.encode(asdict(manifest)))
    return id_


def foreign(header: Any, body: bytes = b"") -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + body


def refused_or_same(directory: Path, sealed: ModelPackage) -> bool:
    """Whether read refuses; an answer that is not the sealed content, or another error, fails the test."""
    try:
        found = read(directory, sealed.manifest.id)
    except ModelError:
        return True
    assert same(found, sealed)
    return False


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_read_returns_what_was_written(tmp_path: Path, cell: str) -> None:
    """Manifest and tensors come back equal, with types and shapes, and the network is recognised."""
    sealed = package(tensors=tensors(cell, 2), cell=cell, layers=2)
    path = write(tmp_path, sealed)
    assert path == files(tmp_path, sealed)[1]
    found = read(tmp_path, sealed.manifest.id)
    assert same(found, sealed)
    assert found.manifest.span_end_s == 1_650_000_000
    assert check_network(found) == NetworkConfig(cell, 5, 8, 2, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in files(tmp_path, sealed))


def test_id_is_the_beginning_of_the_tensor_files_digest(tmp_path: Path) -> None:
    """The id can be checked with any SHA-256 tool."""
    sealed = package()
    write(tmp_path, sealed)
    stored = files(tmp_path, sealed)[0].read_bytes()
    assert sealed.manifest.id == hashlib.sha256(stored).hexdigest()[:12]


def test_seal_is_reproducible_and_sees_every_change() -> None:
    """The same content has the same id and digest; any other content another digest."""
    first = package()
    assert same(package(), first)
    changed = tensors()
    changed["gate"] = np.nextafter(changed["gate"], np.float32(9))
    others = [
        package(tensors=changed),
        package(tensors=tensors() | {"gate": np.array([[0.25, 1.0]], np.float32)}),
        package(skill=0.1250001),
        package(devices=("b/ü", "a", "c")),
        package(report={}),
        package(parent="0123456789ab"),
    ]
    assert len({other.manifest.sha256 for other in [first, *others]}) == 7
    assert all(other.manifest.id != first.manifest.id for other in others[:2])


def test_seal_takes_copies(tmp_path: Path) -> None:
    """What the caller does to its arrays afterwards does not reach the package, in any memory order."""
    mine = tensors()
    mine["turned"] = np.arange(12, dtype=np.float32).reshape(3, 4).T
    mine["scalar"] = np.array(2.5, np.float32)
    expected = mine["turned"].copy()
    sealed = package(tensors=mine)
    mine["turned"][...] = -1.0
    write(tmp_path, sealed)
    found = read(tmp_path, sealed.manifest.id)
    np.testing.assert_array_equal(found.tensors["turned"], expected)
    assert found.tensors["scalar"].shape == ()


def test_write_refuses_a_package_changed_after_sealing(tmp_path: Path) -> None:
    """Neither a tensor nor a manifest entry can be changed under an old digest."""
    sealed = package()
    sealed.tensors["gate"][0] = 0.5
    with pytest.raises(ModelError, match="changed"):
        write(tmp_path, sealed)
    other = package()
    with pytest.raises(ModelError, match="changed"):
        write(tmp_path, replace(other, manifest=replace(other.manifest, skill=1.0)))
    assert not list(tmp_path.iterdir())


def test_write_that_fails_leaves_the_old_files_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the disk at any point leaves a readable package and no half-written file behind."""
    sealed = package()
    write(tmp_path, sealed)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    for good_calls in range(4):  # per file: its own fsync, its directory's
        calls = iter(range(99))
        with monkeypatch.context() as patch:
            fsync = os.fsync
            patch.setattr(
                os, "fsync", lambda d, c=calls, n=good_calls, f=fsync: (f if next(c) < n else full)(d)
            )
            with pytest.raises(OSError, match="No space"):
                write(tmp_path, sealed)
        assert same(read(tmp_path, sealed.manifest.id), sealed)
        assert len(list(tmp_path.iterdir())) == 2


def test_files_reach_the_disk_before_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Per file: contents flushed, then renamed, then the directory flushed; and the manifest comes last."""
    story: list[str] = []
    fsync, replace_path = os.fsync, Path.replace

    def spy_fsync(descriptor: int) -> None:
        story.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def spy_replace(path: Path, target: Path) -> Path:
        story.append(f"rename {path.name} {target.name}")
        return replace_path(path, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    sealed = package()
    write(tmp_path, sealed)
    assert story == [
        step
        for path in files(tmp_path, sealed)
        for step in (
            f"fsync {path.name}.tmp",
            f"rename {path.name}.tmp {path.name}",
            f"fsync {tmp_path.name}",
        )
    ]


@pytest.mark.parametrize("which", [0, 1])
def test_read_after_bit_flips_is_refused_or_unchanged(tmp_path: Path, which: int) -> None:
    """One flipped bit anywhere in either file is found, unless it changed nothing that counts (spaces)."""
    sealed = package()
    write(tmp_path, sealed)
    path = files(tmp_path, sealed)[which]
    content = path.read_bytes()
    random = np.random.default_rng(which)
    refused = 0
    for _ in range(400):
        damaged = bytearray(content)
        damaged[random.integers(len(content))] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        refused += refused_or_same(tmp_path, sealed)
    assert refused == 400 if which == 0 else refused > 300
    path.write_bytes(content)
    assert not refused_or_same(tmp_path, sealed)


@pytest.mark.parametrize("which", [0, 1])
def test_read_after_bursts_of_damage_is_refused_or_unchanged(tmp_path: Path, which: int) -> None:
    """Zeroed, shuffled, doubled, cut out and random stretches are found."""
    sealed = package()
    write(tmp_path, sealed)
    path = files(tmp_path, sealed)[which]
    content = path.read_bytes()
    random = np.random.default_rng(10 + which)
    for turn in range(300):
        start, end = sorted(random.integers(0, len(content) + 1, 2))
        part = content[start:end]
        swapped = (
            bytes(len(part)),
            random.bytes(len(part)),
            part[::-1],
            part + part,
            b"",
        )[turn % 5]
        path.write_bytes(content[:start] + swapped + content[end:])
        refused_or_same(tmp_path, sealed)


@pytest.mark.parametrize("which", [0, 1])
def test_read_of_a_truncated_file_is_refused(tmp_path: Path, which: int) -> None:
    """A file that ends early, at any point, is never taken for a package."""
    sealed = package()
    write(tmp_path, sealed)
    path = files(tmp_path, sealed)[which]
    content = path.read_bytes().rstrip()
    for length in [
        *range(40),
        *np.random.default_rng(0).integers(40, len(content), 150),
        len(content) - 1,
    ]:
        path.write_bytes(content[:length])
        assert refused_or_same(tmp_path, sealed)


def test_read_of_exchanged_files_is_refused(tmp_path: Path) -> None:
    """Whole files of another package under this one's name are found."""
    first, second = package(), package(tensors=tensors(seed=1))
    write(tmp_path, first)
    write(tmp_path, second)
    for mine, other in zip(files(tmp_path, first), files(tmp_path, second), strict=True):
        kept = mine.read_bytes()
        mine.write_bytes(other.read_bytes())
        with pytest.raises(ModelError, match="SHA-256"):
            read(tmp_path, first.manifest.id)
        mine.write_bytes(kept)
    for mine, other in zip(files(tmp_path, first), files(tmp_path, second), strict=True):
        mine.write_bytes(other.read_bytes())
    with pytest.raises(ModelError, match="SHA-256"):
        read(tmp_path, first.manifest.id)


@pytest.mark.parametrize("which", [0, 1])
def test_read_without_a_file_says_which_is_missing(tmp_path: Path, which: int) -> None:
    """Each of the two files is named when it is not there."""
    sealed = package()
    write(tmp_path, sealed)
    path = files(tmp_path, sealed)[which]
    path.unlink()
    with pytest.raises(ModelError, match=rf"{path.name} is missing"):
        read(tmp_path, sealed.manifest.id)


@pytest.mark.parametrize("which", [0, 1])
def test_read_of_what_is_no_plain_file_is_refused(tmp_path: Path, which: int) -> None:
    """A directory or a pipe under the name is refused at once: nobody waits for a writer."""
    sealed = package()
    write(tmp_path, sealed)
    path = files(tmp_path, sealed)[which]
    path.unlink()
    path.mkdir()
    assert refused_or_same(tmp_path, sealed)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(ModelError, match="no plain file"):
        read(tmp_path, sealed.manifest.id)


def test_read_over_the_size_limit_is_refused_at_limit_plus_one(tmp_path: Path) -> None:
    """Exactly max_bytes are allowed, one more is not, and the sentence says both numbers."""
    sealed = package()
    write(tmp_path, sealed)
    size = files(tmp_path, sealed)[0].stat().st_size
    assert same(read(tmp_path, sealed.manifest.id, max_bytes=size), sealed)
    with pytest.raises(ModelError, match=f"{size} bytes, and {size - 1}"):
        read(tmp_path, sealed.manifest.id, max_bytes=size - 1)


def test_read_of_an_oversized_manifest_is_refused_unread(tmp_path: Path) -> None:
    """A manifest of a gibibyte (a sparse file) is refused by its size."""
    sealed = package()
    write(tmp_path, sealed)
    os.truncate(files(tmp_path, sealed)[1], 2**30)
    with pytest.raises(ModelError, match="bytes, and"):
        read(tmp_path, sealed.manifest.id)


@pytest.mark.parametrize(
    "id_", ["", "../../etc/passw", "ABCDEF012345", "0123456789ab\n", "0123456789a", "0" * 64]
)
def test_read_of_an_id_that_is_none_is_refused(tmp_path: Path, id_: str) -> None:
    """Only twelve lower-case hex digits name a model: no path can be smuggled in."""
    with pytest.raises(ModelError, match="no model id"):
        read(tmp_path, id_)


def _number_as_text(m: dict[str, Any]) -> None:
    m["rows"] = "150"


def _text_as_number(m: dict[str, Any]) -> None:
    m["group"] = 7


def _bool_as_number(m: dict[str, Any]) -> None:
    m["hidden"] = True


def _fields_as_text(m: dict[str, Any]) -> None:
    m["fields"] = "temperature"


def _fields_with_null(m: dict[str, Any]) -> None:
    m["fields"] = ["temperature", None]


def _report_nested(m: dict[str, Any]) -> None:
    m["report"] = {"a": {"b": 1}}


def _report_list(m: dict[str, Any]) -> None:
    m["report"] = [1, 2]


def _missing(m: dict[str, Any]) -> None:
    del m["parent"]


def _unknown(m: dict[str, Any]) -> None:
    m["surprise"] = 1


def _null(m: dict[str, Any]) -> None:
    m["skill"] = None


def _huge_number(m: dict[str, Any]) -> None:
    m["rows"] = 10**400


def _newer(m: dict[str, Any]) -> None:
    m["format_version"] = 2


def _version_true(m: dict[str, Any]) -> None:
    m["format_version"] = True


def _version_list(m: dict[str, Any]) -> None:
    m["format_version"] = [1] * 1000


def _other_id(m: dict[str, Any]) -> None:
    m["id"] = "0123456789ab"


def _other_number(m: dict[str, Any]) -> None:
    m["skill"] = 0.9


def _other_devices(m: dict[str, Any]) -> None:
    m["devices"] = ["b/ü", "a", "c"]


@pytest.mark.parametrize(
    "damage",
    [
        _number_as_text,
        _text_as_number,
        _bool_as_number,
        _fields_as_text,
        _fields_with_null,
        _report_nested,
        _report_list,
        _missing,
        _unknown,
        _null,
        _huge_number,
        _newer,
        _version_true,
        _version_list,
        _other_id,
        _other_number,
        _other_devices,
    ],
)
def test_read_of_a_changed_manifest_is_refused(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None]
) -> None:
    """Wrong types, missing and unknown entries, another version and plain edits are all refused."""
    sealed = package()
    path = write(tmp_path, sealed)
    manifest = json.loads(path.read_text("utf-8"))
    damage(manifest)
    path.write_text(json.dumps(manifest), "utf-8")
    assert refused_or_same(tmp_path, sealed)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b'"text"',
        b"{",
        b"{}",
        b"\x00" * 100,
        b"\xff\xfe{\x00",
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"format_version":' * 50_000,
        b'{"format_version":1e400}',
        b'{"format_version":NaN}',
        b'{"format_version":' + b"1" * 5000 + b"}",
        b'{"\\ud800":1}',
    ],
    ids=lambda content: repr(content[:16]),
)
def test_read_of_garbage_for_a_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    """Whatever bytes stand where the manifest should, the answer is a ModelError."""
    sealed = package()
    path = write(tmp_path, sealed)
    path.write_bytes(content)
    assert refused_or_same(tmp_path, sealed)


def test_read_says_which_format_version_is_unknown(tmp_path: Path) -> None:
    """A package of a newer gruard is refused by name of its version, before anything else is looked at."""
    sealed = package()
    path = write(tmp_path, sealed)
    path.write_text(json.dumps({"format_version": 2, "new": "shape"}), "utf-8")
    with pytest.raises(ModelError, match="format_version is 2, and only 1"):
        read(tmp_path, sealed.manifest.id)


class _Canary:
    fired = False

    @staticmethod
    def fire() -> None:
        _Canary.fired = True

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return _Canary.fire, ()


def _entry(**changes: Any) -> dict[str, Any]:
    return {"gate": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


@pytest.mark.parametrize(
    "stored",
    [
        pickle.dumps(_Canary()),
        foreign(pickle.dumps(_Canary())),
        foreign(b"{}", pickle.dumps(_Canary())),
        b"PK\x03\x04" + bytes(200),
        struct.pack("<Q", 2**63) + b"{}",
        foreign(json.dumps(_entry()).encode() + b" " * 2**20, bytes(8)),
        foreign(b""),
        foreign(b"[]"),
        foreign(b"{" * 10_000),
        foreign(b"\xff" * 50),
        foreign(_entry(), bytes(4)),
        foreign(_entry(), bytes(12)),
        foreign(_entry(dtype="BF16", shape=[4]), bytes(8)),
        foreign(_entry(dtype="F8_E4M3", shape=[8]), bytes(8)),
        foreign(_entry(dtype="F16", shape=[4]), bytes(8)),
        foreign(_entry(dtype="O"), bytes(8)),
        foreign(_entry(dtype="BOOL", shape=[8]), b"\x02" * 8),
        foreign(_entry(shape=[2**40, 2**40]), bytes(8)),
        foreign(_entry(shape=[-2]), bytes(8)),
        foreign(_entry(shape=[1] * 100 + [2]), bytes(8)),
        foreign(_entry(data_offsets=[8, 0]), bytes(8)),
        foreign(_entry(data_offsets=[0, 2**62]), bytes(8)),
        foreign(_entry(), struct.pack("<ff", 1.0, float("nan"))),
        foreign(_entry(), struct.pack("<ff", 1.0, float("-inf"))),
        foreign({"device.gate": _entry()["gate"]}, bytes(8)),
    ],
    ids=lambda stored: repr(stored[:12]),
)
def test_read_of_a_hostile_tensor_file_is_refused(tmp_path: Path, stored: bytes) -> None:
    """Pickles, archives, false headers, odd types and bad numbers are refused even under a fitting digest."""
    id_ = plant(tmp_path, stored)
    with pytest.raises(ModelError, match=id_):
        read(tmp_path, id_)
    assert not _Canary.fired


def test_read_of_mutated_headers_under_a_fitting_digest_raises_nothing_else(tmp_path: Path) -> None:
    """Random damage to the safetensors header, resealed as an attacker could, is refused or harmless."""
    stored = weights.save_safetensors(package().tensors)
    header = 8 + int.from_bytes(stored[:8], "little")
    random = np.random.default_rng(4)
    refused = 0
    for _ in range(500):
        damaged = bytearray(stored)
        for _ in range(random.integers(1, 4)):
            damaged[random.integers(header)] = random.integers(256)
        id_ = plant(tmp_path, bytes(damaged))
        try:
            read(tmp_path, id_)
        except ModelError:
            refused += 1
    assert refused > 300


def test_read_of_a_manifest_with_infinity_in_it_is_refused(tmp_path: Path) -> None:
    """JSON has no infinity, but 1e999 reads as one: it never becomes a skill."""
    id_ = plant(tmp_path, weights.save_safetensors(tensors()), skill=12345.5)
    path = tmp_path / f"{id_}.json"
    path.write_bytes(path.read_bytes().replace(b"12345.5", b"1e999"))
    with pytest.raises(ModelError, match="manifest"):
        read(tmp_path, id_)


def traced_peak(directory: Path, id_: str, max_bytes: int) -> int:
    """Bytes that were allocated at once while reading, whatever came of it."""
    with contextlib.suppress(ModelError):
        read(directory, id_, max_bytes=max_bytes)  # once for what is kept
    tracemalloc.start()
    try:
        with contextlib.suppress(ModelError):
            read(directory, id_, max_bytes=max_bytes)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_read_takes_memory_for_what_is_there_and_not_for_what_may_be(tmp_path: Path) -> None:
    """A small package costs little under any limit, and a large one its file and its tensors."""
    small, large = package(), package(tensors=tensors() | {"large": np.ones(2**20)})
    for sealed in (small, large):
        write(tmp_path, sealed)
    assert traced_peak(tmp_path, small.manifest.id, 2**30) < 2**20
    size = files(tmp_path, large)[0].stat().st_size
    assert traced_peak(tmp_path, large.manifest.id, size) < 2 * size + 2**17


@pytest.mark.parametrize(
    "stored",
    [
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 2**16) + b"{" * 2**16,
        struct.pack("<Q", 2**16 - 8) + b"[" * 2**20,
        foreign({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, b"\0" * 64),
        foreign({"a": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 64]}}, b"\0" * 64),
        foreign(
            {f"t{n}": {"dtype": "F64", "shape": [8], "data_offsets": [0, 64]} for n in range(9)}, b"\0" * 64
        ),
        foreign({f"t{n}": {"dtype": "F64", "shape": [0], "data_offsets": [0, 0]} for n in range(900)}),
        foreign({"a": {"dtype": "F64", "shape": [0, 2**62], "data_offsets": [0, 0]}}),
        foreign({"a": {"dtype": "F64", "shape": [1] * 5000, "data_offsets": [0, 8]}}, b"\0" * 8),
    ],
    ids=lambda stored: f"{len(stored)} bytes",
)
def test_read_of_a_hostile_header_allocates_no_more_than_twice_the_limit(
    tmp_path: Path, stored: bytes
) -> None:
    """Whatever sizes a header claims, reading stays within twice what a file may have."""
    limit = 2**21
    assert traced_peak(tmp_path, plant(tmp_path, stored), limit) < 2 * limit


def _set(name: str, tensor: object) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.__setitem__(name, tensor)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        _set("gate", np.array([1.0, np.nan], np.float32)),
        _set("gate", np.array([1.0, np.inf])),
        _set("gate", np.array([1.0, 2.0], np.float16)),
        _set("gate", np.array([True, False])),
        _set("gate", np.array([1, 2], ">i8")),
        _set("gate", np.array([object()])),
        _set("gate", np.array(["text"])),
        _set("device.location", np.zeros((2, 2), np.float32)),
        _set("device.location", np.array(1.0, np.float32)),
    ],
)
def test_seal_refuses_tensors_that_read_would_refuse(change: Callable[[Tensors], None]) -> None:
    """Non-finite numbers, odd types and a wrong number of devices stop at the door."""
    mine = tensors()
    change(mine)
    with pytest.raises(ModelError, match="tensor"):
        package(tensors=mine)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("skill", float("nan")),
        ("created_s", float("inf")),
        ("report", {"loss": float("nan")}),
        ("report", {"loss": [1]}),
        ("report", {"loss": object()}),
        ("rows", 1.5),
        ("rows", None),
        ("group", "\ud800"),
        ("group", None),
        ("fields", (1, 2)),
        ("devices", ("a", "a", "b")),
    ],
)
def test_seal_refuses_a_manifest_that_read_would_refuse(name: str, value: object) -> None:
    """An entry of a wrong type or without a finite number stops at the door."""
    with pytest.raises(ModelError):
        package(**{name: value})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    report=st.dictionaries(
        st.text(max_size=9),
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=20),
        max_size=6,
    ),
    times=st.tuples(*[st.floats(-1e12, 1e12)] * 3),
    fields=st.lists(st.text(min_size=1, max_size=5), max_size=4),
)
def test_any_manifest_comes_back_as_it_was_sealed(
    tmp_path: Path, report: dict[str, Any], times: tuple[float, float, float], fields: list[str]
) -> None:
    """Whatever texts and numbers it holds, a sealed manifest is read back equal, types included."""
    created, start, end = times
    sealed = package(
        report=report, fields=tuple(fields), created_s=created, span_start_s=start, span_end_s=end
    )
    write(tmp_path, sealed)
    found = read(tmp_path, sealed.manifest.id)
    assert same(found, sealed)
    assert found.manifest.report == report
    assert {k: type(v) for k, v in found.manifest.report.items()} == {k: type(v) for k, v in report.items()}


def _drop(name: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.__delitem__(name)


@pytest.mark.parametrize(
    ("change", "entries"),
    [
        (_drop("cell.weight_ih_l0"), {}),
        (_drop("readout.weight"), {}),
        (_drop("cell.bias_hh_l0"), {}),
        (_set("readout.weight", np.zeros(8, np.float32)), {}),
        (_set("readout.bias", np.zeros(3, np.float32)), {}),
        (_set("cell.weight_hh_l0", np.zeros((24, 9), np.float32)), {}),
        (_set("cell.weight_hh_l0", np.zeros((24, 8))), {}),
        (_set("cell.weight_hh_l0", np.full((24, 8), 5e37, np.float32)), {}),
        (_set("cell.weight_ih_l0", np.zeros((24, 0), np.float32)), {}),
        (_set("cell.weight_ih_l1", np.zeros((24, 8), np.float32)), {}),
        (_set("cell.note", np.zeros(1, np.float32)), {}),
        (lambda _: None, {"cell": "lstm"}),
        (lambda _: None, {"cell": "transformer"}),
        (lambda _: None, {"hidden": 9}),
        (lambda _: None, {"hidden": -8}),
        (lambda _: None, {"hidden": 2**70}),
        (lambda _: None, {"layers": 2}),
        (lambda _: None, {"layers": 10**9}),
    ],
)
def test_check_network_refuses_what_does_not_fit_the_manifest(
    change: Callable[[Tensors], None], entries: dict[str, Any]
) -> None:
    """Missing, foreign, misshapen, mistyped or absurd weights, and another cell or size, are a ModelError."""
    mine = tensors()
    change(mine)
    with pytest.raises(ModelError):
        check_network(package(tensors=mine, **entries))
