"""Messages between the front and an engine: a JSON header and bytes, over a local socket."""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any

_LENGTHS = struct.Struct("!II")
MAX_HEADER, MAX_BODY = 4_000_000, 256_000_000
CONGESTED = 16_000_000
"""Bytes that may wait to be written; above that, uploads are refused rather than queued."""


class TooLarge(ValueError):
    """A message that the other end would not take; nothing of it was written."""


class Link:
    """One end of the connection. `send` never blocks; `receive` raises EOFError at the end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer = reader, writer
        self._given = 0  # bytes, ever

    def send(self, header: dict[str, Any], body: Any = b"") -> int:
        """Sends one message, and gives its place for `has_sent`; without effect once the other end
        is gone. Raises TooLarge."""
        if self._writer.is_closing():
            return self._given
        text = json.dumps(header, ensure_ascii=False)
        head, view = text.encode(errors="surrogatepass"), memoryview(body).cast("B")
        if len(head) > MAX_HEADER or view.nbytes > MAX_BODY:
            raise TooLarge(f"a message of {len(head):,} + {view.nbytes:,} bytes is too large")
        self._writer.write(_LENGTHS.pack(len(head), view.nbytes) + head)
        if view.nbytes:
            self._writer.write(view)
        self._given += _LENGTHS.size + len(head) + view.nbytes
        return self._given

    def has_sent(self, place: int) -> bool:
        """Whether the message that `send` gave this place has left this process."""
        return self._given - self._writer.transport.get_write_buffer_size() >= place

    @property
    def congested(self) -> bool:
        """Whether so much waits to be written that no upload should be added."""
        return self._writer.transport.get_write_buffer_size() > CONGESTED

    async def receive(self) -> tuple[dict[str, Any], bytes]:
        """The next message. Raises EOFError where the other end is gone."""
        try:
            head, body = _LENGTHS.unpack(await self._reader.readexactly(_LENGTHS.size))
            if head > MAX_HEADER or body > MAX_BODY:
                raise EOFError(f"a message of {head} + {body} bytes is too large")
            header = json.loads(await self._reader.readexactly(head))
            return header, await self._reader.readexactly(body) if body else b""
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise EOFError("the other end is gone") from error

    def close(self) -> None:
        """Closes the connection."""
        self._writer.close()
