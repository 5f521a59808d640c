"""What is fuzzed: functions that take any bytes and return, or raise when a promise is broken.

A target's seeds are good inputs; a fuzzer starts from them. `modules` are watched for new paths where the
fuzzer can do that. What a target keeps (folders, servers) is made once and lives as long as the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gruard.models.weights import ModelPackage


@dataclass(frozen=True, slots=True)
class Target:
    """One entrance for foreign bytes."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    modules: tuple[str, ...]
    most_bytes: int


#: How the messages of the targets `json` and `topic` ended, by reason; "" for readings.
ENDS: Counter[str] = Counter()

#: Must never be made: what would run out of a pickle, or a YAML or TOML value, touches this file.
CANARY = Path(tempfile.gettempdir()) / "gruard-fuzz-canary"

#: The secret of the configurations that are fuzzed.
SECRET = "canary-5f1c"  # noqa: S105 -- made to be looked for


@cache
def _folder() -> Path:
    keeper = tempfile.TemporaryDirectory(prefix="gruard-fuzz-")
    _KEPT.append(keeper)
    return Path(keeper.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


# Messages.


def _json(payload: bytes) -> None:
    from support_sources import OPTIONS, outcome

    for level in OPTIONS:
        end = outcome(f"{level}/pump/t", payload)
        ENDS[end if isinstance(end, str) else ""] += 1


def _json_seeds() -> list[bytes]:
    from support_payloads import HOSTILE
    from support_sources import GOOD

    return [GOOD, *(payload for _, payload in HOSTILE if len(payload) < 300)]


def _topic(content: bytes) -> None:
    from support_sources import OPTIONS, outcome

    text = content.decode("utf-8", "surrogateescape")
    for level in OPTIONS:
        end = outcome(f"{level}/{text}", b"1" if level.startswith("scalar") else b'{"a":1,"k":2}')
        ENDS[end if isinstance(end, str) else ""] += 1
    outcome(text, b"1")


def _topic_seeds() -> list[bytes]:
    from support_payloads import HOSTILE_TOPICS

    return [tail.encode("utf-8", "surrogatepass") for _, tail in HOSTILE_TOPICS if len(tail) < 300]


# The configuration.

CONFIG = b"""version = 1
instance = "hall"
[mqtt]
host = "10.0.0.1"
port = 8883
client_id = "gruard"
username = "reader"
password = "canary-5f1c"
protocol = "5"
[mqtt.tls]
insecure = true
[[sources]]
topic = "plant/{line}/{device+}"
time = "ts"
include = ["t*", "flow"]
exclude = ["*.raw"]
rename = { "t" = "temperature" }
qos = 1
future_tolerance_s = 60.5
[[sources]]
name = "single"
topic = "single/{device}/{field}"
decoder = "scalar"
[model]
cell = "lstm"
dropout = 0.1
[train]
every = "off"
max_duration = "1h 30m"
[alerts]
base = "site/gruard"
budget = "2 per device per day"
[http]
listen = "[::1]:9109"
[state]
directory = "/tmp/gruard"
[limits]
devices = 1_000
[log]
level = "debug"
"""


def _config(content: bytes) -> None:
    """Printed as it holds, or refused with status 78 and lines that a terminal can show; never the secret."""
    from gruard.daemon import cli

    path = _folder() / "gruard.toml"
    path.write_bytes(content)
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        status = cli.main(["check-config", "-c", str(path)])
    told = output.getvalue() + errors.getvalue()
    told.encode()
    assert status == (cli.BAD_CONFIG if errors.getvalue() else cli.OK)
    assert all(line.isprintable() for line in errors.getvalue().split("\n")), told
    # Where damage has moved the secret to another key, it is that key's value and may be shown.
    if content.count(SECRET.encode()) == 1 and f'\npassword = "{SECRET}"\n'.encode() in content:
        assert SECRET not in told


def _config_seeds() -> list[bytes]:
    return [CONFIG, *(b"version = 1\n" + block for block in CONFIG.split(b"\n["))]


# Weights.


def _sealed() -> ModelPackage:
    from test_weights import package

    return package()


def _tensors(stored: bytes) -> None:
    """A tensor file that an attacker has sealed again: the digest fits, so only the checks are left."""
    from gruard.models import weights

    id_ = hashlib.sha256(stored).hexdigest()[:12]
    manifest = replace(_good_manifest(), id=id_, sha256="")
    manifest = replace(manifest, sha256=weights._digest(manifest, stored))
    _read_weights(id_, stored, msgspec.json.encode(asdict(manifest)))


def _manifest(content: bytes) -> None:
    """A manifest that says what it likes about a good tensor file, with a digest that fits where it can."""
    from gruard.models import weights
    from gruard.models.errors import ModelError

    stored = _good_tensors()
    with contextlib.suppress(ModelError):
        manifest = weights._parse_manifest(content)
        resealed = replace(manifest, sha256=weights._digest(manifest, stored))
        content = msgspec.json.encode(asdict(resealed))
    _read_weights(hashlib.sha256(stored).hexdigest()[:12], stored, content)


def _read_weights(id_: str, stored: bytes, manifest: bytes) -> None:
    """Reading refuses by name or gives finite numbers, and so does a network that is built from them."""
    import numpy as np

    from gruard.models import weights
    from gruard.models.cells import Network
    from gruard.models.errors import ModelError

    folder = _folder()
    tensor_file, manifest_file = folder / f"{id_}.safetensors", folder / f"{id_}.json"
    tensor_file.write_bytes(stored)
    manifest_file.write_bytes(manifest)
    try:
        package = weights.read(folder, id_, max_bytes=1 << 20)
        assert all(np.isfinite(tensor).all() for tensor in package.tensors.values())
        assert math.isfinite(package.manifest.skill)
        config = weights.check_network(package)
        network = Network(
            config, {n: t for n, t in package.tensors.items() if n.startswith(("cell.", "readout."))}
        )
        y, state = network.step(
            np.ones((2, config.inputs), np.float32), np.zeros((2, config.state_width), np.float32)
        )
        assert np.isfinite(y).all()
        assert np.isfinite(state).all()
    except ModelError:
        pass
    finally:
        tensor_file.unlink()
        manifest_file.unlink()
    assert not CANARY.exists(), "something in the weights was run"


@cache
def _good_manifest() -> object:
    return _sealed().manifest


@cache
def _good_tensors() -> bytes:
    from gruard.models import weights

    return weights.save_safetensors(_sealed().tensors)


def _tensor_seeds() -> list[bytes]:
    import pickle  # noqa: TID251 -- written as an attack, never loaded

    class Runs:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (CANARY,)

    attack = pickle.dumps(Runs())
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    small = len(header).to_bytes(8, "little") + header + b"\0\0\0\0"
    return [_good_tensors(), small, attack, small[:-4] + attack, len(attack).to_bytes(8, "little") + attack]


def _manifest_seeds() -> list[bytes]:
    return [msgspec.json.encode(asdict(_good_manifest()))]


def _adopt(content: bytes) -> None:
    from fuzz.models import adopt

    adopt(content)


# The database.


def _database(content: bytes) -> None:
    """The database file with bytes changed: what can be read is read, the rest is a StateError."""
    from gruard.daemon.edges.database import DATABASE_NAME, open_readonly
    from gruard.daemon.errors import StateError

    folder = _folder() / "state"
    folder.mkdir(exist_ok=True)
    for stale in folder.iterdir():
        stale.unlink()
    (folder / DATABASE_NAME).write_bytes(content)
    with contextlib.suppress(StateError), open_readonly(folder) as reader:
        for device in reader.devices():
            reader.history(device.device, device.fields, 100)
        list(reader.readings_after(0))
        list(reader.checkpoints())
        reader.alerts(100)
        reader.outbox(100)
        reader.outbox_pending()
        reader.models()
        reader.live_models()
        reader.meta("schema_version")
        reader.count_readings()


@cache
def _good_database() -> bytes:
    from support_database import FIELDS, alert, checkpoint, model, readings

    from gruard.daemon.edges.database import DATABASE_NAME, open_database

    with tempfile.TemporaryDirectory(prefix="gruard-fuzz-") as name:
        with open_database(Path(name), now_s=1.75e9) as database:
            database.append(readings(1, 60, ("pump-1", "pump-2")))
            database.save_checkpoints([checkpoint()], generation=1, lsn=7)
            database.save_alert(alert())
            database.add_model(model("m-1"))
            database.put_outbox("gruard/alerts/pump-1", b"{}", 1, retain=False, key="k")
            database.commit()
            assert database.history("pump-1", FIELDS, 9).lsn.size
        return (Path(name) / DATABASE_NAME).read_bytes()


# A device's checkpoint, HTTP requests.


def _checkpoint(content: bytes) -> None:
    """A checkpoint's bytes give a device and its memory, or a msgspec.DecodeError."""
    from gruard.daemon.core.checkpoints import open_state

    with contextlib.suppress(msgspec.DecodeError):
        open_state(content)


def _checkpoint_seeds() -> list[bytes]:
    from gruard.daemon.core.devices import Device

    device = Device("pump-1", "plant", ("f0", "f1"), 7, last_values={"f0": 1.5}, sightings={"f2": 3})
    known = msgspec.msgpack.encode(device)
    return [len(known).to_bytes(4, "big") + known + bytes(64)]


def _request(content: bytes) -> None:
    """A request is parsed to a method and a path, or refused with a status that exists."""
    from gruard.daemon.edges import http

    with contextlib.suppress(http._BadRequestError):
        method, path = http._parse_request_line(content)
        assert method.isalpha()
        assert path.isprintable()
        assert "?" not in path


def _request_seeds() -> list[bytes]:
    return [b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", b"HEAD /?a=b HTTP/1.0\n\n"]


def _recording(content: bytes) -> None:
    """A CSV file gives readings and counted refusals, or a ConfigError."""
    from gruard.daemon.errors import ConfigError
    from gruard.daemon.recording import open_recording
    from gruard.daemon.records import REJECT_REASONS, SourceOptions

    path = _folder() / "pump-1.csv"
    path.write_bytes(content)
    with contextlib.suppress(ConfigError):
        recording = open_recording(path, SourceOptions("s", "s/{device}"), None)
        for reading in recording:
            assert all(map(math.isfinite, reading.values.values()))
        assert recording.refused.keys() <= set(REJECT_REASONS)


def _recording_seeds() -> list[bytes]:
    return [
        b"time,a,b\n2024-01-01T00:00:00Z,1,2\n2024-01-01T00:00:01Z,,x\n",
        b'ts;device;a\n1700000000;p;"1"\n1700000001;p;1e400\n',
    ]


_SOURCES = ("gruard.daemon.decoders", "gruard.daemon.core.sources")

TARGETS = {
    target.name: target
    for target in (
        Target("json", _json, _json_seeds, _SOURCES, 2000),
        Target("topic", _topic, _topic_seeds, _SOURCES, 500),
        Target("config", _config, _config_seeds, ("gruard.daemon",), 2000),
        Target("tensors", _tensors, _tensor_seeds, ("gruard.models.weights",), 8192),
        Target("manifest", _manifest, _manifest_seeds, ("gruard.models.weights",), 4096),
        Target("adopt", _adopt, lambda: [b""], ("gruard.models", "gruard.daemon.core"), 8),
        Target("database", _database, lambda: [_good_database()], ("gruard.daemon.edges",), 200_000),
        Target("checkpoint", _checkpoint, _checkpoint_seeds, ("gruard.daemon.core",), 4096),
        Target("request", _request, _request_seeds, ("gruard.daemon.edges.http",), 9000),
        Target("recording", _recording, _recording_seeds, ("gruard.daemon.recording",), 2000),
    )
}
