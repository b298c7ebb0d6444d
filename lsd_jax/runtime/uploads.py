"""Files that clients hand to inputs: what an input takes, and how an upload is checked."""

from __future__ import annotations

import asyncio
import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any
from uuid import uuid4

import numpy as np
from jaxtyping import UInt8

from lsd_jax.data.pictures import decode_picture, load_mask, picture_kind
from lsd_jax.runtime.errors import InputError

IMAGES = ("image/jpeg", "image/png", "image/webp")
MAX_PIXELS = 16_000_000
"""Of an uploaded picture: as many as a phone's camera gives, 48 MB when decoded."""

LARGE = 100_000
"""Bytes of an upload whose digest is computed beside the event loop: a megabyte takes a
millisecond or more, which no stream should wait."""


@dataclass(frozen=True)
class InputFile:
    """An upload, whole and checked."""

    id: str
    filename: str
    mime_type: str
    size_bytes: int
    sha256: str
    data: bytes = field(repr=False)

    def open(self) -> io.BytesIO:
        """The content as a binary file."""
        return io.BytesIO(self.data)

    @property
    def path(self) -> Path:
        """The content as a file on disk, which lives as long as this object."""
        if "_path" not in self.__dict__:
            kept = NamedTemporaryFile(prefix="lsd-upload-", suffix=Path(self.filename).suffix)
            kept.write(self.data)
            kept.flush()
            self.__dict__["_path"] = kept
        return Path(self.__dict__["_path"].name)

    def image(self, height: int, width: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
        """The picture, upright, opaque, cropped around its centre and resized.

        Raises InputError where it is damaged, or has more than `MAX_PIXELS`.
        """
        try:
            return decode_picture(self.data, height, width, MAX_PIXELS)
        except ValueError as error:
            raise InputError("bad_upload", str(error)) from error

    def mask(self, height: int, width: int) -> UInt8[np.ndarray, "{height} {width}"]:
        """How white the picture is, stretched as frames are; what is transparent counts as black.

        Raises InputError as `image` does.
        """
        try:
            return load_mask(self.data, height, width, MAX_PIXELS)
        except ValueError as error:
            raise InputError("bad_upload", str(error)) from error


@dataclass(frozen=True)
class UploadSpec:
    """What an argument of an input takes."""

    kind: str
    mime_types: tuple[str, ...] | None
    max_bytes: int
    target_width: int | None = None
    target_height: int | None = None

    def to_schema(self) -> dict:
        """The argument's JSON schema: the id of an upload, and what may be uploaded."""
        mime_types = list(self.mime_types) if self.mime_types else None
        return {
            "type": "string",
            "description": "the id of an upload",
            "x-lucid-upload": {**self.__dict__, "mime_types": mime_types},
        }

    def check(self, file: InputFile) -> None:
        """Raises InputError where `file` is none that this argument takes. For worker threads, not
        the loop: a large picture takes milliseconds."""
        if file.size_bytes > self.max_bytes:
            raise InputError(
                "too_large",
                f"{file.size_bytes:,} bytes are too many; send at most {self.max_bytes:,}",
            )
        if self.mime_types is not None and file.mime_type not in self.mime_types:
            known = ", ".join(self.mime_types)
            raise InputError("bad_upload", f"{file.mime_type!r} is not taken; send one of {known}")
        if self.kind == "image":
            try:
                found = picture_kind(file.data, MAX_PIXELS)
            except ValueError as error:
                raise InputError("bad_upload", str(error)) from error
            if found != file.mime_type:
                raise InputError(
                    "bad_upload", f"this is {found}, not {file.mime_type}; say what it is"
                )


def image_input(
    mime_types: tuple[str, ...] = IMAGES,
    max_bytes: int = 1_000_000,
    size: tuple[int, int] | None = None,
) -> Any:
    """The default of an argument that takes a picture; `size` (width, height) asks clients to
    shrink to it before they send."""
    width, height = size or (None, None)
    return UploadSpec("image", tuple(mime_types), max_bytes, width, height)


def file_input(mime_types: tuple[str, ...] | None = None, max_bytes: int = 8_000_000) -> Any:
    """The default of an argument that takes a file."""
    return UploadSpec("file", tuple(mime_types) if mime_types else None, max_bytes)


class UploadShelf:
    """The uploads of a session that no input has taken yet: bounded in number and bytes."""

    def __init__(self, max_files: int, max_bytes: int):
        self._max_files, self._max_bytes = max_files, max_bytes
        self._files: dict[str, InputFile] = {}

    async def add(
        self, filename: str, mime_type: str, data: bytes, sha256: str | None = None
    ) -> str:
        """Holds an upload and gives its id; the oldest makes room for it. Raises InputError."""
        if len(data) > self._max_bytes:
            raise InputError(
                "too_large", f"{len(data):,} bytes are too many; send at most {self._max_bytes:,}"
            )
        hashed = hashlib.sha256
        if len(data) > LARGE:
            digest = (await asyncio.to_thread(hashed, data)).hexdigest()
        else:
            digest = hashed(data).hexdigest()
        if sha256 is not None and sha256.lower() != digest:
            raise InputError("bad_upload", "the upload's sha256 differs; send it again")
        file = InputFile(uuid4().hex, filename[:200], mime_type, len(data), digest, data)
        self._files[file.id] = file
        while len(self._files) > self._max_files or self.held_bytes > self._max_bytes:
            self._files.pop(next(iter(self._files)))
        return file.id

    @property
    def held_bytes(self) -> int:
        """Bytes held now."""
        return sum(file.size_bytes for file in self._files.values())

    def take(self, id: object) -> InputFile:
        """The upload `id`, not checked yet; it is held no longer. Raises InputError."""
        file = self._files.pop(id, None) if isinstance(id, str) else None
        if file is None:
            raise InputError("unknown_upload", "no upload of this id is held; upload first")
        return file
