"""`publish.video(...)` and the like: what a model gives, and how a sample is checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from lsd_jax.runtime.errors import ManifestGenerationError, OutputValidationError

T = TypeVar("T")
PIXEL_FORMATS = ("rgb24", "yuv420p")


@dataclass(frozen=True)
class OutputSpec:
    """Base of the outputs."""

    name: str
    kind: ClassVar[str]

    def to_dict(self) -> dict:
        """The output as the manifest gives it."""
        return {"kind": self.kind, **asdict(self)}

    def check(self, sample: Any) -> Any:
        """The sample, ready to send. Raises OutputValidationError."""
        raise NotImplementedError

    def _refuse(self, found: str, wanted: str) -> OutputValidationError:
        return OutputValidationError(f"output {self.name!r} got {found}; publish {wanted}")


@dataclass(frozen=True)
class VideoOutput(OutputSpec):
    """Pictures: `rgb24` is `[height, width, 3]`, `yuv420p` the planes Y, U, V of BT.601 in video
    range as `[3 / 2 * height, width]`; both uint8 and contiguous."""

    width: int
    height: int
    fps: float | int = 30.0
    pixel_format: str = "rgb24"
    kind: ClassVar[str] = "video"

    def __post_init__(self):
        if self.pixel_format not in PIXEL_FORMATS:
            known = ", ".join(PIXEL_FORMATS)
            raise ManifestGenerationError(f"pixel_format {self.pixel_format!r}; known: {known}")
        if min(self.width, self.height) < 2 or self.width % 2 or self.height % 2:
            raise ManifestGenerationError(
                f"{self.width}x{self.height} pictures; width and height must be even, at least 2"
            )
        if not 0 < self.fps <= 1000:
            raise ManifestGenerationError(f"fps={self.fps} must be above 0 and at most 1000")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a sample."""
        if self.pixel_format == "rgb24":
            return (self.height, self.width, 3)
        return (self.height * 3 // 2, self.width)

    def check(self, sample: Any) -> np.ndarray:
        wanted = f"a contiguous uint8 array of shape {self.shape} ({self.pixel_format})"
        if not isinstance(sample, np.ndarray):
            raise self._refuse(type(sample).__name__, wanted)
        if sample.dtype != np.uint8 or sample.shape != self.shape:
            raise self._refuse(f"{sample.dtype} of shape {sample.shape}", wanted)
        if not sample.flags.c_contiguous:
            raise self._refuse("an array that is not contiguous", wanted)
        return sample


@dataclass(frozen=True)
class AudioOutput(OutputSpec):
    """Sound: `[samples, channels]`, float32 in [-1, 1] or int16."""

    sample_rate_hz: int
    channels: int = 1
    sample_format: str = "float32"
    kind: ClassVar[str] = "audio"

    def __post_init__(self):
        if self.sample_format not in ("float32", "int16"):
            raise ManifestGenerationError(f"sample_format {self.sample_format!r}; float32 or int16")
        if not 8_000 <= self.sample_rate_hz <= 192_000:
            raise ManifestGenerationError(
                f"sample_rate_hz={self.sample_rate_hz} must be in [8000, 192000]"
            )
        if not 1 <= self.channels <= 8:
            raise ManifestGenerationError(f"channels={self.channels} must be in [1, 8]")

    def check(self, sample: Any) -> np.ndarray:
        wanted = f"{self.sample_format} of shape [samples, {self.channels}], finite"
        if not isinstance(sample, np.ndarray) or sample.dtype != self.sample_format:
            raise self._refuse(str(getattr(sample, "dtype", type(sample).__name__)), wanted)
        if sample.ndim != 2 or sample.shape[1] != self.channels:
            raise self._refuse(f"shape {sample.shape}", wanted)
        if not np.isfinite(sample).all():
            raise self._refuse("values that are not finite", wanted)
        return np.ascontiguousarray(sample)


@dataclass(frozen=True)
class JsonOutput(OutputSpec):
    """Values that JSON can say; `schema` is told to clients."""

    schema: dict | None = None
    max_bytes: int = 16_384
    kind: ClassVar[str] = "json"

    def check(self, sample: Any) -> bytes:
        try:
            data = json.dumps(sample, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise self._refuse(str(error), "what JSON can say") from error
        if len(data) > self.max_bytes:
            raise self._refuse(f"{len(data):,} bytes", f"at most {self.max_bytes:,}")
        return data


@dataclass(frozen=True)
class BytesOutput(OutputSpec):
    """Anything else."""

    content_type: str
    max_bytes: int = 16_384
    kind: ClassVar[str] = "bytes"

    def check(self, sample: Any) -> bytes:
        if not isinstance(sample, bytes | bytearray | memoryview):
            raise self._refuse(type(sample).__name__, "bytes")
        if len(sample) > self.max_bytes:
            raise self._refuse(f"{len(sample):,} bytes", f"at most {self.max_bytes:,}")
        return bytes(sample)


class Output(Generic[T]):
    """An output declared on a session class; on a session, what publishes a sample of it:
    `await self.main_video(picture)`."""

    def __init__(self, make: Callable[[str], OutputSpec]):
        self._make = make
        self.spec: OutputSpec | None = None

    def __set_name__(self, owner: type, name: str) -> None:
        self.spec = self._make(name)

    def __get__(self, session: Any, owner: type) -> Any:
        if session is None:
            return self
        name = self.spec.name if self.spec else ""

        async def send(sample: T, ts_ms: float | None = None) -> None:
            await session.ctx.publish(name, sample, ts_ms)

        return send


class publish:
    """The outputs of a model, for its `outputs`."""

    video, audio, json, bytes = VideoOutput, AudioOutput, JsonOutput, BytesOutput


class output:
    """The outputs of a session, each as an attribute that is named after it."""

    @staticmethod
    def video(
        *, width: int, height: int, fps: float | int = 30.0, pixel_format: str = "rgb24"
    ) -> Any:
        """Pictures; see `VideoOutput`."""
        return Output(lambda name: VideoOutput(name, width, height, fps, pixel_format))

    @staticmethod
    def audio(*, sample_rate_hz: int, channels: int = 1, sample_format: str = "float32") -> Any:
        """Sound; see `AudioOutput`."""
        return Output(lambda name: AudioOutput(name, sample_rate_hz, channels, sample_format))

    @staticmethod
    def json(*, schema: dict | None = None, max_bytes: int = 16_384) -> Any:
        """Values; see `JsonOutput`."""
        return Output(lambda name: JsonOutput(name, schema, max_bytes))

    @staticmethod
    def bytes(*, content_type: str, max_bytes: int = 16_384) -> Any:
        """Anything else; see `BytesOutput`."""
        return Output(lambda name: BytesOutput(name, content_type, max_bytes))
