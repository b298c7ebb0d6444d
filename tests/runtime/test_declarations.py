"""Declarations: a manifest from annotations, in the Lucid runtime's terms, or a clear refusal."""

from typing import Literal

import numpy as np
import pytest
from pydantic import BaseModel

from lsd_jax import runtime
from lsd_jax.live.drive import DriveModel
from lsd_jax.runtime import (
    InputFile,
    LucidModel,
    LucidSession,
    ManifestGenerationError,
    OutputValidationError,
    axis,
    build_model_definition,
    file_input,
    hold,
    image_input,
    input,
    manifest,
    output,
    pointer,
    press,
    publish,
    wheel,
)


class Painter(LucidSession):
    camera = input.video()
    state = output.json(max_bytes=64)

    @input(description="What to paint")
    def set_prompt(self, prompt: str) -> None: ...

    @input
    def brush(self, size: int = 3, kind: Literal["oil", "ink"] = "oil") -> None:
        """A brush
        to paint with."""

    @input(name="run", binding=hold(keys=("ShiftLeft",)))
    def _run(self, pressed: bool) -> None: ...

    @input(paused=True)
    def picture(self, image: InputFile = image_input(max_bytes=99, size=(64, 48))) -> None: ...

    @input()
    def any(self, data: InputFile = file_input(), note: str = "") -> None: ...


class PainterModel(LucidModel):
    name = "painter"
    description = "paints"
    session_cls = Painter
    outputs = (publish.video("main_video", width=64, height=48), publish.audio("hum", 48_000))


def test_a_manifest_says_all_that_is_declared():
    found = manifest(PainterModel)
    assert found["model"] == {"name": "painter", "description": "paints"}
    inputs = {one["name"]: one for one in found["inputs"]}
    assert inputs.keys() == {"set_prompt", "brush", "run", "picture", "any"}
    assert inputs["brush"]["description"] == "A brush to paint with."
    brush = inputs["brush"]["args_schema"]
    assert brush["additionalProperties"] is False and "required" not in brush
    assert brush["properties"]["kind"]["enum"] == ["oil", "ink"]
    assert inputs["run"]["binding"] == {"type": "hold", "keys": ["ShiftLeft"], "mouse_buttons": []}
    assert inputs["picture"]["args_schema"]["properties"]["image"]["x-lucid-upload"] == {
        "kind": "image",
        "mime_types": ["image/jpeg", "image/png", "image/webp"],
        "max_bytes": 99,
        "target_width": 64,
        "target_height": 48,
    }
    upload = inputs["any"]["args_schema"]["properties"]["data"]["x-lucid-upload"]
    assert upload["mime_types"] is None and upload["max_bytes"] == 8_000_000
    assert [(o["name"], o["kind"]) for o in found["outputs"]] == [
        ("main_video", "video"), ("hum", "audio"), ("state", "json"),
    ]  # fmt: skip
    assert found["video_inputs"] == [{"name": "camera", "width": 64, "height": 48}]


def test_what_is_taken_while_paused():
    inputs = build_model_definition(PainterModel).inputs
    taken = {name for name, one in inputs.items() if one.paused}
    assert taken == {"set_prompt", "run", "picture"}


def test_every_binding_of_the_scene_is_in_its_manifest():
    inputs = {one["name"]: one for one in manifest(DriveModel)["inputs"]}
    kinds = {name: one["binding"]["type"] for name, one in inputs.items()}
    assert kinds == {
        "steer": "axis", "throttle": "axis", "brake": "hold", "night": "press", "look": "pointer",
        "zoom": "wheel",
    }  # fmt: skip
    assert inputs["zoom"]["binding"]["step"] == 120


class Nested(BaseModel):
    x: int


def _unannotated(self, x): ...
def _nested(self, x: Nested): ...
def _arguments(self, *x: int): ...
def _no_schema(self, x: np.ndarray): ...
def _no_default(self, x: InputFile): ...
def _not_a_file(self, x: str = file_input()): ...


def _bound(binding):
    @input(binding=binding)
    def other(self, x: int): ...

    return other


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (input(_unannotated), "annotate 'x'"),
        (input(_nested), "flat"),
        (input(_arguments), r"no \*x"),
        (input(_no_schema), "no JSON schema"),
        (input(_no_default), "image_input"),
        (input(_not_a_file), "InputFile"),
        *(
            (_bound(binding), "write its arguments as")
            for binding in (hold(), press(), axis((), ()), pointer(), wheel())
        ),
    ],
)
def test_a_declaration_without_sense_is_refused(method, words):
    session = type("S", (runtime.Session,), {"it": method})
    model = type("M", (runtime.Model,), {"name": "m", "session_cls": session})
    with pytest.raises(ManifestGenerationError, match=words):
        manifest(model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": ""}, "no name"),
        ({"session_cls": None}, "no session"),
        ({"outputs": PainterModel.outputs * 2}, "two outputs"),
        ({"outputs": ()}, "no size"),
    ],
)
def test_a_model_without_sense_is_refused(changes, words):
    with pytest.raises(ManifestGenerationError, match=words):
        manifest(type("M", (PainterModel,), changes))


def test_two_inputs_of_one_name_are_refused():
    class Twice(Painter):
        @input(name="brush")
        def other(self) -> None: ...

    with pytest.raises(ManifestGenerationError, match="two inputs"):
        manifest(type("M", (PainterModel,), {"session_cls": Twice}))


@pytest.mark.parametrize(
    "make",
    [
        lambda: publish.video("v", width=63, height=48),
        lambda: publish.video("v", width=64, height=48, fps=0),
        lambda: publish.video("v", width=64, height=48, pixel_format="bgr"),
        lambda: publish.audio("a", 48_000, sample_format="mp3"),
        lambda: wheel(0),
        lambda: input.video(width=3),
    ],
)
def test_outputs_without_sense_are_refused(make):
    with pytest.raises(ManifestGenerationError):
        make()


PICTURE = np.zeros((48, 64, 3), np.uint8)
VIDEO = publish.video("v", width=64, height=48)


@pytest.mark.parametrize(
    ("spec", "sample"),
    [
        (VIDEO, PICTURE.astype(np.float32)),
        (VIDEO, PICTURE[:, :32]),
        (VIDEO, np.zeros((64, 48, 3), np.uint8).transpose(1, 0, 2)),
        (VIDEO, [[0]]),
        (publish.video("v", width=64, height=48, pixel_format="yuv420p"), PICTURE),
        (publish.audio("a", 8_000), np.full((10, 1), np.nan, np.float32)),
        (publish.audio("a", 8_000), np.zeros((10, 2), np.float32)),
        (publish.audio("a", 8_000), np.zeros((10, 1))),
        (publish.json("j", max_bytes=8), "longer than that"),
        (publish.json("j"), float("nan")),
        (publish.json("j"), object()),
        (publish.bytes("b", "x/y", max_bytes=2), b"abc"),
        (publish.bytes("b", "x/y"), "text"),
    ],
)
def test_samples_of_another_kind_are_refused(spec, sample):
    with pytest.raises(OutputValidationError, match="publish "):
        spec.check(sample)


def test_samples_of_the_declared_kind_pass():
    assert VIDEO.check(PICTURE) is PICTURE
    planes = np.zeros((72, 64), np.uint8)
    assert publish.video("v", 64, 48, pixel_format="yuv420p").check(planes) is planes
    assert publish.json("j").check({"a": [1]}) == b'{"a": [1]}'
    assert publish.bytes("b", "x/y").check(memoryview(b"ab")) == b"ab"
    sound = np.zeros((4, 1), np.int16)
    assert publish.audio("a", 8_000, sample_format="int16").check(sound).shape == (4, 1)


def test_the_published_names_are_there():
    """Those of the Lucid runtime, which code written for it imports and calls."""
    exports = """LucidModel LucidSession SessionContext LoadContext InputFile input publish hold
        press axis pointer wheel file_input image_input manifest build_model_definition HoldBinding
        PressBinding AxisBinding PointerBinding WheelBinding InputDefinition OutputSpec
        ModelDefinition LucidError OutputValidationError ManifestGenerationError output"""
    assert [name for name in exports.split() if not hasattr(runtime, name)] == []
    ctx = runtime.SessionContext("an id", {}, lambda *_: None, lambda: None)
    attributes = """session_id room_name logger running publish pause resume is_paused
        wait_if_paused record_inference_ms inference_ms_p50 output_metrics"""
    assert [name for name in attributes.split() if not hasattr(ctx, name)] == []
    assert ctx.room_name == "an id"
    for owner, names in (
        (runtime.LucidModel, "name description config_cls session_cls outputs bind_runtime load "
                             "unload create_session"),
        (runtime.LucidSession, "run close"),
        (runtime.publish, "video audio json bytes"),
        (runtime.output, "video audio json bytes"),
        (runtime.InputFile, "open path"),
    ):  # fmt: skip
        assert [name for name in names.split() if not hasattr(owner, name)] == []
    file = runtime.InputFile("i", "f", "m", 1, "s", b"x")
    fields = ("id", "filename", "mime_type", "size_bytes", "sha256", "data")
    assert [getattr(file, name) for name in fields] == ["i", "f", "m", 1, "s", b"x"]
