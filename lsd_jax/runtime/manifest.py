"""What a model takes and gives, derived from its class."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

from lsd_jax.runtime.errors import ManifestGenerationError
from lsd_jax.runtime.inputs import InputDefinition, VideoInput, inputs_of, video_inputs_of
from lsd_jax.runtime.model import Model
from lsd_jax.runtime.outputs import Output, OutputSpec, VideoOutput


@dataclass(frozen=True)
class ModelDefinition:
    """A model's declaration, checked."""

    name: str
    description: str
    inputs: Mapping[str, InputDefinition]
    video_inputs: Mapping[str, tuple[int, int]]  # width, height
    outputs: Mapping[str, OutputSpec]

    def to_dict(self) -> dict:
        """The manifest. `video_inputs` is ours; the rest is as the Lucid runtime has it."""
        return {
            "model": {"name": self.name, "description": self.description},
            "inputs": [one.to_dict() for one in self.inputs.values()],
            "outputs": [one.to_dict() for one in self.outputs.values()],
            "video_inputs": [
                {"name": name, "width": width, "height": height}
                for name, (width, height) in self.video_inputs.items()
            ],
        }


def build_model_definition(model: Model | type[Model]) -> ModelDefinition:
    """The definition of a model class, or of a loaded model whose `outputs` load has set.

    Raises ManifestGenerationError, with what to do.
    """
    cls = model if isinstance(model, type) else type(model)
    if not getattr(model, "name", ""):
        raise ManifestGenerationError(f"{cls.__name__} has no name; set `name = ...`")
    if model.session_cls is None:
        raise ManifestGenerationError(f"{model.name} has no session; set `session_cls = ...`")
    outputs = _outputs(model)
    pictures = next((o for o in outputs.values() if isinstance(o, VideoOutput)), None)
    return ModelDefinition(
        model.name,
        model.description,
        inputs_of(model.session_cls),
        {
            name: _size(name, one, pictures)
            for name, one in video_inputs_of(model.session_cls).items()
        },
        outputs,
    )


def manifest(model: Model | type[Model]) -> dict:
    """The manifest as JSON can say it."""
    return build_model_definition(model).to_dict()


def _size(name: str, one: VideoInput, like: VideoOutput | None) -> tuple[int, int]:
    if one.width is not None and one.height is not None:
        return one.width, one.height
    if like is None:
        raise ManifestGenerationError(
            f"video input {name!r} has no size and no video output to take it from; give "
            "input.video(width=, height=)"
        )
    return like.width, like.height


def _outputs(model: Model | type[Model]) -> dict[str, OutputSpec]:
    cls = model.session_cls
    on_session = (inspect.getattr_static(cls, name) for name in dir(cls))
    declared = [o.spec for o in on_session if isinstance(o, Output) and o.spec]
    found: dict[str, OutputSpec] = {}
    for one in (*model.outputs, *declared):
        if one.name in found:
            raise ManifestGenerationError(f"two outputs are named {one.name!r}; rename one")
        found[one.name] = one
    return found
