"""Model packages on disk: `<id>.safetensors` holds the numbers, `<id>.json` says what they are.

The only module of `gruard.models` that touches files. Two rules hold for the whole file:

1. Nothing here runs what it reads: safetensors for arrays, typed JSON for the manifest.
2. Whatever stands in the two files, `read` returns exactly what was sealed or raises ModelError.
   safetensors itself loads a flipped bit without a word, so one SHA-256 covers both files.

The digest finds damage, not malice: whoever can write to the directory can also seal a package.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from gruard.models.cells import NetworkConfig, check_weights
from gruard.models.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Tensors: TypeAlias = dict[str, NDArray[Any]]

FORMAT_VERSION = 1
#: Tensors of this prefix have one row per device of the manifest, in its order.
DEVICE_PREFIX = "device."
#: Network weights, as `gruard.models.cells` names them.
NETWORK_PREFIXES = ("cell.", "readout.")
#: A group of 100,000 devices with about 500 numbers each.
MAX_TENSOR_BYTES = 256 * 2**20
#: 100,000 device ids of 128 characters, with room to spare.
MAX_MANIFEST_BYTES = 16 * 2**20
#: A safetensors header names each tensor in some 100 bytes, and a model has tens of tensors. What is made of
#: a header takes up to twenty times its size.
MAX_HEADER_BYTES = 2**16
ID_DIGITS = 12
_ID = re.compile(rf"[0-9a-f]{{{ID_DIGITS}}}")
_DTYPES = (np.float32, np.float64, np.int32, np.int64)


@dataclass(frozen=True)
class Manifest:
    """What a package is and where it comes from. Times in Unix seconds UTC."""

    format_version: int
    id: str  # first 12 hex digits of the SHA-256 of the safetensors file
    group: str
    source: str
    fields: tuple[str, ...]
    cell: str
    hidden: int
    layers: int
    created_s: float
    parent: str | None  # id of the model it replaced
    span_start_s: float  # event time of the first and the last row trained or judged on
    span_end_s: float
    rows: int
    devices: tuple[str, ...]  # order of the rows in the device tensors
    skill: float
    report: dict[str, str | int | float | bool | None]
    sha256: str  # of this manifest without this line, then of the safetensors file


@dataclass(frozen=True)
class ModelPackage:
    """A manifest and the tensors it seals."""

    manifest: Manifest
    tensors: Tensors


def seal(
    *,
    tensors: Mapping[str, NDArray[Any]],
    group: str,
    source: str,
    fields: tuple[str, ...],
    cell: str,
    hidden: int,
    layers: int,
    created_s: float,
    parent: str | None,
    span_start_s: float,
    span_end_s: float,
    rows: int,
    devices: tuple[str, ...],
    skill: float,
    report: Mapping[str, str | float | bool | None],
) -> ModelPackage:
    """Make a package of copies of the tensors, with its id and digest.

    Raises:
        ModelError: a tensor or an entry of the manifest is of a wrong type, not finite or does not fit.
    """
    copies = {name: np.array(tensor, order="C") for name, tensor in tensors.items()}
    _check_tensors(copies, devices)
    stored = save_safetensors(copies)
    unsealed = Manifest(
        format_version=FORMAT_VERSION,
        id=_id_of(stored),
        group=group,
        source=source,
        fields=tuple(fields),
        cell=cell,
        hidden=hidden,
        layers=layers,
        created_s=created_s,
        parent=parent,
        span_start_s=span_start_s,
        span_end_s=span_end_s,
        rows=rows,
        devices=tuple(devices),
        skill=skill,
        report=dict(report),
        sha256="",
    )
    _check_finite(unsealed)  # before JSON, which would turn NaN into null
    # Through JSON and back: what is sealed is exactly what a reader will find (1 and 1.0 differ in JSON).
    manifest = _parse_manifest(_to_json(asdict(unsealed)))
    return ModelPackage(replace(manifest, sha256=_digest(manifest, stored)), copies)


def write(directory: Path, package: ModelPackage) -> Path:
    """Put both files into the directory, the manifest last, each whole or not at all; return its path.

    Raises:
        ModelError: the tensors were changed after they were sealed.
        OSError: the disk refuses; a package of the same id that was there before is still whole.
    """
    manifest, stored = package.manifest, save_safetensors(package.tensors)
    if _digest(manifest, stored) != manifest.sha256:
        raise ModelError(f"model {manifest.id} was changed after it was sealed")
    write_file(directory / f"{manifest.id}.safetensors", stored)
    path = directory / f"{manifest.id}.json"
    write_file(path, msgspec.json.format(_to_json(asdict(manifest)), indent=2))
    return path


def read(directory: Path, id: str, *, max_bytes: int = MAX_TENSOR_BYTES) -> ModelPackage:  # noqa: A002 -- the manifest's own word
    """Read a package back, exactly as it was sealed.

    Raises:
        ModelError: a file is missing, too large, damaged, foreign or of an unknown format.
    """
    if not _ID.fullmatch(id):
        raise ModelError(f"{id[:80]!r} is no model id: it must be {ID_DIGITS} hex digits")
    try:
        return _read(directory, id, max_bytes)
    except ModelError as error:
        raise ModelError(f"model {id}: {error}") from error


def _read(directory: Path, id_: str, max_bytes: int) -> ModelPackage:
    manifest = _parse_manifest(_read_file(directory / f"{id_}.json", MAX_MANIFEST_BYTES))
    stored = _read_file(directory / f"{id_}.safetensors", max_bytes)
    _check_header(stored)
    if _digest(manifest, stored) != manifest.sha256 or _id_of(stored) != id_ or manifest.id != id_:
        raise ModelError("its files do not match their SHA-256: one of them is damaged or was exchanged")
    tensors = _parse_tensors(stored)
    _check_tensors(tensors, manifest.devices)
    _check_finite(manifest)
    return ModelPackage(manifest, tensors)


def check_network(package: ModelPackage) -> NetworkConfig:
    """Shape of the network in a package.

    Raises:
        ModelError: its weights are not exactly those of the manifest's cell, hidden width and layers.
    """
    manifest = package.manifest
    weights = {name: t for name, t in package.tensors.items() if name.startswith(NETWORK_PREFIXES)}
    widths = {}
    for name, axis in (("cell.weight_ih_l0", 1), ("readout.weight", 0)):
        if name not in weights or weights[name].ndim != 2:
            raise ModelError(f"model {manifest.id}: {name} is missing or no matrix")
        widths[name] = weights[name].shape[axis]
    inputs, outputs = widths["cell.weight_ih_l0"], widths["readout.weight"]
    config = NetworkConfig(manifest.cell, inputs, manifest.hidden, manifest.layers, outputs)
    check_weights(config, weights)
    return config


def _to_json(content: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(content, order="sorted")
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise ModelError(f"the manifest cannot be written as JSON: {error}") from error


def _parse_manifest(content: bytes) -> Manifest:
    try:
        found = msgspec.json.decode(content)
        if not isinstance(found, dict):
            raise ModelError("its manifest is no JSON object")
        version = found.get("format_version")
        if version != FORMAT_VERSION:
            raise ModelError(
                f"its format_version is {version!r:.40}, and only {FORMAT_VERSION} is known here"
            )
        odd = found.keys() ^ {field.name for field in fields(Manifest)}
        if odd:
            raise ModelError(f"its manifest lacks or does not know {', '.join(sorted(odd))!r:.200}")
        return msgspec.convert(found, Manifest)
    except (ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise ModelError(f"its manifest cannot be read: {error}") from error


def _check_finite(manifest: Manifest) -> None:
    numbers = {"created_s": manifest.created_s, "skill": manifest.skill}
    numbers |= {"span_start_s": manifest.span_start_s, "span_end_s": manifest.span_end_s}
    numbers |= {key: value for key, value in manifest.report.items() if isinstance(value, float)}
    odd = [name for name, number in numbers.items() if not math.isfinite(number)]
    if odd:
        raise ModelError(f"its manifest has no finite number for {', '.join(odd)}")


def _parse_tensors(stored: bytes) -> Tensors:
    try:
        tensors: Tensors = load_safetensors(stored)
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError, MemoryError) as error:
        raise ModelError(f"its tensors cannot be read: {error}") from error
    return tensors


def _check_header(stored: bytes) -> None:
    """A safetensors file begins with the length of its JSON header: 8 bytes, little-endian."""
    if len(stored) < 8:
        raise ModelError(f"its safetensors file ends after {len(stored)} bytes")
    claimed = int.from_bytes(stored[:8], "little")
    if claimed > min(MAX_HEADER_BYTES, len(stored) - 8):
        raise ModelError(
            f"its tensor file is truncated or not safetensors: it claims a header of {claimed} bytes"
        )


def _check_tensors(tensors: Tensors, devices: tuple[str, ...]) -> None:
    if len(set(devices)) != len(devices):
        raise ModelError("a device is listed twice")
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise ModelError(
                f"tensor {name!r:.80} is {tensor.dtype}, not one of {[d.__name__ for d in _DTYPES]}"
            )
        # The least and the largest say it without a copy: NaN wins both.
        if tensor.size and not np.isfinite([tensor.min(), tensor.max()]).all():
            raise ModelError(f"tensor {name!r:.80} holds a number that is not finite")
        if name.startswith(DEVICE_PREFIX) and tensor.shape[:1] != (len(devices),):
            raise ModelError(f"tensor {name!r:.80} has shape {tensor.shape} for {len(devices)} devices")


def _id_of(stored: bytes) -> str:
    return hashlib.sha256(stored).hexdigest()[:ID_DIGITS]


def _digest(manifest: Manifest, stored: bytes) -> str:
    content = asdict(manifest)
    del content["sha256"]
    digest = hashlib.sha256(_to_json(content))
    digest.update(stored)
    return digest.hexdigest()


def _read_file(path: Path, max_bytes: int) -> bytes:
    """Whole content of a plain file; never more than max_bytes are read, and no pipe is waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ModelError(f"{path.name} is no plain file")
            # Not max_bytes: a buffer of what is asked for is made at once. One more byte tells if it grew.
            content = file.read(status.st_size + 1) if status.st_size <= max_bytes else b""
    except FileNotFoundError as error:
        raise ModelError(f"{path.name} is missing") from error
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror}") from error
    if len(content) > max_bytes or status.st_size > max_bytes:
        raise ModelError(f"{path.name} has {status.st_size} bytes, and {max_bytes} are allowed")
    return content


def write_file(path: Path, content: bytes) -> None:
    """Write beside, flush to the disk, then rename over: a reader sees the old file or the whole new one."""
    beside = path.with_name(f"{path.name}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)  # else the rename itself can be lost with the power
    finally:
        os.close(directory)
