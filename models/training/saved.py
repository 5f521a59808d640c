"""A fit that was cut off, as bytes: everything it needs to go on as if it had never stopped.

    sha256 of the rest (32 bytes), then safetensors: the tensors by name, and "numbers" as JSON

It belongs to one `key`, which stands for everything the fit was asked: with another it is not read. Nothing
in it is executed, and what is damaged is as good as nothing.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_DIGEST_BYTES = 32


class Keeper(Protocol):
    """Where a fit is kept: one place, whole or not at all."""

    def load(self) -> bytes | None:
        """What was saved last, or None."""

    def save(self, content: bytes) -> None:
        """Keep this in place of what was there."""


def key_of(config: object, *arrays: NDArray[Any]) -> str:
    """Stands for a configuration and the rows that it is used on."""
    digest = hashlib.sha256(repr(config).encode())
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        for part in array:  # not all at once: a copy of it may be large
            digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def pack(key: str, tensors: Mapping[str, NDArray[Any]], numbers: Mapping[str, Any]) -> bytes:
    """Tensors by name, and numbers that JSON can hold."""
    text = json.dumps({"key": key, **numbers}).encode()
    content = save({**tensors, "numbers": np.frombuffer(text, np.uint8)})
    return hashlib.sha256(content).digest() + content


def unpack(key: str, content: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
    """What `pack` was given; None where it is damaged or belongs to another key."""
    digest, rest = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(rest).digest() != digest:
        return None
    try:
        tensors = load(rest)
        numbers = json.loads(tensors.pop("numbers").tobytes())
    except (SafetensorError, KeyError, ValueError):
        return None
    return (tensors, numbers) if numbers["key"] == key else None
