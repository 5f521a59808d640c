"""What a person may tell the running daemon, and how it is written: one JSON object a command.

    {"do": "activate", "model": "3f2a..."}      on <base>/cmd/models, or as a file of `gruard models activate`
    {"group": "plant-1a2b"}                     on <base>/cmd/train, whose commands may leave "do" out

A new command is a struct with a tag, a place in `Command` and a place in `TOPICS`. What carries it out is
`gruard.daemon.commands`.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

#: A command takes some hundred bytes.
MOST_BYTES: Final = 4096


class CommandError(Exception):
    """A command that cannot be carried out: a reason that is a metric label, and a sentence for a person."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class _Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do"):
    pass


class Activate(_Command, frozen=True, tag="activate"):
    """Put a model of the registry in charge of its group."""

    model: str  # its id, or how that begins


class Rollback(_Command, frozen=True, tag="rollback"):
    """Put the model before the live one in charge again; where there is none, the baseline."""

    group: str | None = None  # None: the only group with a model


class TrainNow(_Command, frozen=True, tag="train"):
    """Begin a training round."""

    group: str | None = None  # None: the only group


class Pause(_Command, frozen=True, tag="pause"):
    """Begin no training round until `Resume`."""


class Resume(_Command, frozen=True, tag="resume"):
    """Training rounds begin again when they are due."""


class _Word(_Command, frozen=True, kw_only=True):
    id: str = ""  # names the message, where its sender names messages: the same one again changes nothing


class _OfAlert(_Word, frozen=True, kw_only=True):
    alert: str | None = None  # its id, or else
    device: str | None = None  # whose alert it was
    time: str | float | None = None  # at this time: RFC 3339, or Unix seconds


class Expected(_OfAlert, frozen=True, kw_only=True, tag="expected"):
    """What an alert told of was normal for its device."""


class Fault(_OfAlert, frozen=True, kw_only=True, tag="fault"):
    """An alert was right."""


class Missed(_Word, frozen=True, kw_only=True, tag="missed", rename={"from_": "from"}):
    """A device had a fault, and there was no alert."""

    device: str
    from_: str | float
    to: str | float


class Mute(_Word, frozen=True, kw_only=True, tag="mute", rename={"for_": "for"}):
    """Tell nothing of a device for a while."""

    device: str
    for_: str  # such as "2h"


class Undo(_Word, frozen=True, kw_only=True, tag="undo"):
    """Take a word back."""

    word: int  # its number


Said: TypeAlias = Expected | Fault | Missed | Mute | Undo
Command: TypeAlias = Activate | Rollback | TrainNow | Pause | Resume | Said

#: Level of the topic below `<base>/cmd/` -> its commands. The first is meant where "do" is left out.
TOPICS: Final[dict[str, tuple[type[Command], ...]]] = {
    "train": (TrainNow, Pause, Resume),
    "models": (Activate, Rollback),
    "feedback": (Expected, Fault, Missed, Mute, Undo),
}
#: Every command by its tag: the values of the metric label, beside "unknown".
TAGS: Final = tuple(str(kind.__struct_config__.tag) for kinds in TOPICS.values() for kind in kinds)
#: Why a command was not carried out; each is the value of a metric label.
REFUSALS: Final = (
    "retained",  # a stored copy: it would be carried out again at every start
    "duplicate",  # delivered twice
    "too_large",
    "not_json",  # or no object
    "unknown_command",  # no such topic, or no such "do" on it
    "bad_fields",  # unknown, missing or of the wrong type
    "no_such_model",
    "no_such_group",
    "unusable",  # the model cannot be read or does not fit
    "busy",  # a training round runs
    *("unknown_alert", "unknown_device", "unknown_word", "bad_span"),  # feedback on nothing
    "unreadable",  # a file in the folder of commands that is none
)


def decode(payload: bytes, topic: str | None = None) -> Command:
    """The command in a payload; `topic` is its level below `<base>/cmd/`, None for a file.

    Raises:
        CommandError: `too_large`, `not_json`, `unknown_command` or `bad_fields`.
    """
    kinds = TOPICS.get(topic, ()) if topic is not None else tuple(k for some in TOPICS.values() for k in some)
    if not kinds:
        known = ", ".join(sorted(TOPICS))
        raise CommandError("unknown_command", f"there is no such command topic; there are {known}")
    if len(payload) > MOST_BYTES:
        raise CommandError("too_large", f"{len(payload)} bytes, allowed are {MOST_BYTES}")
    try:
        fields = msgspec.json.decode(payload or b"{}", type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CommandError("not_json", f"the payload is no JSON object: {error}") from None
    tags = {str(kind.__struct_config__.tag): kind for kind in kinds}
    do = fields.setdefault("do", next(iter(tags)) if topic == "train" else None)
    if not isinstance(do, str) or do not in tags:
        raise CommandError("unknown_command", f'"do" is one of {", ".join(tags)}')
    try:
        return msgspec.convert(fields, type=tags[do])
    except (msgspec.ValidationError, RecursionError) as error:
        raise CommandError("bad_fields", f"{do}: {error}") from None


def encode(command: Command) -> bytes:
    """The payload that `decode` reads."""
    return msgspec.json.encode(command)


def tag(command: Command) -> str:
    """What the command is called."""
    return str(command.__struct_config__.tag)
