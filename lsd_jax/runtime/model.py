"""`Model` and `Session`: what somebody who ports a model writes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from lsd_jax.runtime.context import SessionContext
from lsd_jax.runtime.outputs import OutputSpec

Cfg = TypeVar("Cfg")
M = TypeVar("M", bound="Model")


@dataclass(frozen=True)
class LoadContext:
    """What `Model.load` is handed."""

    config: Any
    logger: logging.Logger


class Session(Generic[M]):
    """One user's stream. `run` goes until it returns or `ctx.running` is False; then `close`."""

    def __init__(self, model: M, ctx: SessionContext):
        self.model, self.ctx = model, ctx

    async def run(self) -> None:
        """Streams; override it."""
        raise NotImplementedError(f"{type(self).__name__} needs `async def run(self)`")

    async def reset(self) -> None:
        """Starts the stream's state anew, after it has given what is not finite."""

    async def close(self) -> None:
        """Frees what the session holds; called once, however it ended."""

    async def snapshot(self) -> bytes:
        """The whole state, for `restore`. Raises NotImplementedError where there is no such."""
        raise NotImplementedError(f"{self.model.name} takes no snapshots; go on without")

    async def restore(self, state: bytes) -> None:
        """Goes on from a snapshot of this model. Raises ValueError where it is none."""
        raise NotImplementedError(f"{self.model.name} takes no snapshots; go on without")


class Model(Generic[Cfg]):
    """What is loaded once, and makes sessions. `slots` is how many it can hold at a time; `load`
    may set that and `outputs` on the instance."""

    name: ClassVar[str] = ""
    description: str = ""
    config_cls: ClassVar[type | None] = None
    session_cls: ClassVar[type[Session] | None] = None
    outputs: Sequence[OutputSpec] = ()
    slots: int = 1

    def bind_runtime(self, runtime_config: Any, logger: logging.Logger) -> None:
        """Hands over the config (an instance of `config_cls`) and the log, before `load`."""
        self.config, self.logger = runtime_config, logger

    async def load(self, context: LoadContext) -> None:
        """Loads weights and compiles; called once, before any session."""

    async def unload(self) -> None:
        """Frees what `load` took."""

    def create_session(self, ctx: SessionContext) -> Session:
        """A new session. Raises RuntimeError where no slot is free."""
        if self.session_cls is None:
            raise NotImplementedError(f"{self.name} needs `session_cls = ...`")
        return self.session_cls(self, ctx)
