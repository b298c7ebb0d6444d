"""Our own realtime protocol: JSON messages and binary pictures over one WebSocket.

A client opens `/v1/live` and sends `start`. Everything it asks for afterwards carries an `id` and
is answered by one `ack` with that `id`. Pictures and files are binary messages: a header of 16
bytes (kind u8, three zero bytes, seq u32, ts_ms f64, little endian) and the content.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lsd_jax.runtime.inputs import first_error

PICTURE, FILE, SNAPSHOT, SAMPLE = 1, 2, 3, 4
_HEADER = struct.Struct("<B3xId")
IN_FLIGHT = 2
"""Pictures out that a client need not have acknowledged by `shown` before it gets another."""
HEADER_BYTES = _HEADER.size
MAX_TEXT, MAX_FIRST = 250_000, 4_000
"""Characters of a JSON message, and of one before there is a session, which needs no token: JSON is
read on the event loop, where all other clients wait for it."""


class ProtocolError(ValueError):
    """A message that no client of this protocol sends."""

    code = "bad_message"


class TooMany(ProtocolError):
    """More messages than a client may send."""

    code = "too_many"


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Start(_Message):
    """Opens the session; the first message. `wait` queues for a slot where none is free. With the
    id of a `session` and its `secret`, it goes on with that one."""

    type: Literal["start"]
    media: Literal["jpeg", "webrtc"] = "jpeg"
    seed: int = Field(0, ge=0, lt=2**31)
    wait: bool = False
    session: str | None = Field(None, max_length=64)
    secret: str = Field("", max_length=64)


class Input(_Message):
    """Calls an input of the manifest."""

    type: Literal["input"]
    id: int = Field(ge=0, lt=2**53)
    name: str = Field(max_length=200)
    args: dict[str, Any] = {}


class Upload(_Message):
    """Announces a file, whose content is the next binary message of kind 2."""

    type: Literal["upload"]
    id: int = Field(ge=0, lt=2**53)
    filename: str = Field("", max_length=200)
    mime_type: str = Field(max_length=100)
    sha256: str | None = Field(None, max_length=64)


class Control(_Message):
    """Pauses, resumes, takes a snapshot (then sent as a binary message of kind 3) or ends."""

    type: Literal["pause", "resume", "snapshot", "end"]
    id: int = Field(ge=0, lt=2**53)


class Restore(_Message):
    """Announces a snapshot, which is the next binary message of kind 3."""

    type: Literal["restore"]
    id: int = Field(ge=0, lt=2**53)


class Shown(_Message):
    """The client has shown picture `seq`, and may be sent another."""

    type: Literal["shown"]
    seq: int = Field(ge=0)


class Offer(_Message):
    """An SDP offer; answered by `answer`."""

    type: Literal["offer"]
    sdp: str = Field(max_length=100_000)


class Candidate(_Message):
    """A trickled ICE candidate, or null at their end."""

    type: Literal["candidate"]
    candidate: dict[str, Any] | None


class Ping(_Message):
    """Answered by `pong` at once."""

    type: Literal["ping"]
    client_ts_ms: float


Message = Annotated[
    Start | Input | Upload | Control | Restore | Shown | Offer | Candidate | Ping,
    Field(discriminator="type"),
]
_adapter: TypeAdapter = TypeAdapter(Message)


def parse(text: str, longest: int = MAX_TEXT) -> Any:
    """A client's message of at most `longest` characters. Raises ProtocolError, in one line."""
    if len(text) > longest:
        words = f"a message of {len(text):,} characters is too long; send at most {longest:,}"
        raise ProtocolError(words)
    try:
        return _adapter.validate_json(text)
    except ValidationError as error:
        raise ProtocolError(in_words(error)) from None
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"no JSON ({error}); send an object with a type") from None


def in_words(error: ValidationError) -> str:
    """The first thing that is wrong with a message, and where its schema is, in one line."""
    return f"{first_error(error)}; /openapi.json has the schema"


def schema() -> dict[str, Any]:
    """JSON schema of what clients send."""
    return _adapter.json_schema()


def pack(kind: int, content: bytes, seq: int = 0, ts_ms: float = 0.0) -> bytes:
    """A binary message."""
    return _HEADER.pack(kind, seq, ts_ms) + content


def unpack(message: bytes) -> tuple[int, int, float, bytes]:
    """Kind, seq, ts_ms and content of a binary message. Raises ProtocolError."""
    if len(message) < _HEADER.size:
        raise ProtocolError(f"no binary message; begin it with a header of {_HEADER.size} bytes")
    kind, seq, ts_ms = _HEADER.unpack_from(message)
    if not abs(ts_ms) < 1e15:  # also refuses what is not a number
        raise ProtocolError("ts_ms is no time; give finite milliseconds")
    return kind, seq, ts_ms, message[_HEADER.size :]
