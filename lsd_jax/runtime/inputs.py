"""`@input` and `input.video()`: what a session takes, with a schema made of annotations."""

from __future__ import annotations

import asyncio
import inspect
import json
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, overload

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from lsd_jax.runtime.bindings import AxisBinding, Binding, HoldBinding
from lsd_jax.runtime.errors import InputError, ManifestGenerationError
from lsd_jax.runtime.mailbox import Frame, Mailbox
from lsd_jax.runtime.uploads import InputFile, UploadShelf, UploadSpec

_MARK = "__lsd_input__"


@dataclass(frozen=True)
class InputDefinition:
    """One input: its method, the schema of its arguments, and when it is taken."""

    name: str
    method: str
    description: str
    arguments: type[BaseModel]
    uploads: Mapping[str, UploadSpec]
    binding: Binding | None
    paused: bool  # taken while the session is paused, too

    def to_dict(self) -> dict:
        """The input as the manifest gives it."""
        schema = self.arguments.model_json_schema()
        for name, upload in self.uploads.items():
            schema["properties"][name] = upload.to_schema()
        found = {"name": self.name, "description": self.description, "args_schema": schema}
        return found | ({"binding": self.binding.to_dict()} if self.binding else {})

    def parse(self, args: object, shelf: UploadShelf) -> dict[str, Any]:
        """The method's arguments from a client's JSON, whose uploads are yet to be checked. Raises
        InputError."""
        if not isinstance(args, dict):
            raise InputError("invalid_args", "args are no object; send the input's arguments")
        try:
            parsed = self.arguments.model_validate_json(json.dumps(args))
        except ValidationError as error:
            words = f"{self.name}: {first_error(error)}; the manifest has its schema"
            raise InputError("invalid_args", words) from None
        except (ValueError, RecursionError) as error:
            raise InputError("invalid_args", f"{self.name}: {error}") from None
        values = {name: getattr(parsed, name) for name in self.arguments.model_fields}
        return values | {name: shelf.take(values[name]) for name in self.uploads}

    async def check(self, values: dict[str, Any]) -> None:
        """Looks into the uploads among `values`. Raises InputError."""
        for name, upload in self.uploads.items():
            await asyncio.to_thread(upload.check, values[name])


def first_error(error: ValidationError) -> str:
    """The first thing that is wrong with what was validated, in one line."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in found["loc"])
    words = " ".join(found["msg"].split())
    return f"{where}: {words}" if where else words


@dataclass(frozen=True)
class _Marked:
    name: str | None
    description: str | None
    binding: Binding | None
    paused: bool | None


class VideoInput:
    """A live video input of a session class; on a session, the mailbox of its newest frame.

    `width` and `height` are what frames are scaled to; where they are None, to the model's first
    video output.
    """

    def __init__(self, width: int | None, height: int | None, description: str):
        if (width is None) != (height is None):
            raise ManifestGenerationError("input.video() takes width and height together, or none")
        self.width, self.height, self.description = width, height, description
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, session: None, owner: type) -> VideoInput: ...
    @overload
    def __get__(self, session: object, owner: type) -> Mailbox[Frame]: ...
    def __get__(self, session, owner):
        return self if session is None else session.ctx.video_inputs[self.name]


class _Input:
    """Marks methods as inputs: `@input`, `@input(description=...)`; `input.video()` is a live
    picture, of which a session sees the newest."""

    def __call__(
        self,
        method: Callable | None = None,
        /,
        *,
        name: str | None = None,
        description: str | None = None,
        binding: Binding | None = None,
        paused: bool | None = None,
    ) -> Any:
        def mark(method: Callable) -> Callable:
            setattr(method, _MARK, _Marked(name, description, binding, paused))
            return method

        return mark if method is None else mark(method)

    def video(
        self, width: int | None = None, height: int | None = None, description: str = ""
    ) -> Any:
        """A live video input; see `VideoInput`."""
        return VideoInput(width, height, description)


input = _Input()


def inputs_of(session_cls: type) -> dict[str, InputDefinition]:
    """The inputs of a session class by name. Raises ManifestGenerationError."""
    found: dict[str, InputDefinition] = {}
    for attribute in dir(session_cls):
        method = inspect.getattr_static(session_cls, attribute)
        marked = getattr(method, _MARK, None)
        if marked is None:
            continue
        definition = _define(attribute, method, marked)
        if definition.name in found:
            raise ManifestGenerationError(f"two inputs are named {definition.name!r}; rename one")
        found[definition.name] = definition
    return found


def video_inputs_of(session_cls: type) -> dict[str, VideoInput]:
    """The live video inputs of a session class by name."""
    found = ((name, inspect.getattr_static(session_cls, name)) for name in dir(session_cls))
    return {name: value for name, value in found if isinstance(value, VideoInput)}


def _define(attribute: str, method: Any, marked: _Marked) -> InputDefinition:
    name = marked.name or attribute
    hints = typing.get_type_hints(method, include_extras=True)
    fields, uploads, found = {}, {}, {}
    for parameter in list(inspect.signature(method).parameters.values())[1:]:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ManifestGenerationError(f"input {name!r}: write no *{parameter.name}")
        if parameter.name not in hints:
            raise ManifestGenerationError(
                f"input {name!r}: annotate {parameter.name!r}, its schema is made of that"
            )
        hint, default = hints[parameter.name], parameter.default
        found[parameter.name] = hint
        if isinstance(default, UploadSpec):
            if hint is not InputFile:
                raise ManifestGenerationError(
                    f"input {name!r}: annotate {parameter.name!r} as InputFile"
                )
            uploads[parameter.name] = default
            hint, default = str, inspect.Parameter.empty
        elif hint is InputFile:
            raise ManifestGenerationError(
                f"input {name!r}: give {parameter.name!r} the default image_input() or file_input()"
            )
        fields[parameter.name] = (hint, ... if default is inspect.Parameter.empty else default)
    if marked.binding:
        marked.binding.check(name, found)
    steering = isinstance(marked.binding, HoldBinding | AxisBinding) or name == "set_prompt"
    description = marked.description or inspect.getdoc(method) or ""
    return InputDefinition(
        name,
        attribute,
        " ".join(description.split()),
        _arguments(name, fields),
        uploads,
        marked.binding,
        steering if marked.paused is None else marked.paused,
    )


def _arguments(name: str, fields: dict[str, Any]) -> type[BaseModel]:
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    try:
        model = create_model(f"{name}_args", __config__=config, **fields)
        schema = model.model_json_schema()
    except Exception as error:  # pydantic's refusals have many types
        reason = str(error).splitlines()[0]
        raise ManifestGenerationError(f"input {name!r} has no JSON schema: {reason}") from error
    if "$defs" in schema and any("properties" in d for d in schema["$defs"].values()):
        raise ManifestGenerationError(f"input {name!r}: arguments must be flat, not objects")
    return model
