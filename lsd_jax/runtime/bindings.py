"""What a page binds an input to: keys, mouse buttons, the pointer, the wheel."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

from lsd_jax.runtime.errors import ManifestGenerationError


@dataclass(frozen=True)
class Binding:
    """Base of the bindings; `takes` are the arguments that a bound method has."""

    kind: ClassVar[str]
    takes: ClassVar[dict[str, type]]

    def to_dict(self) -> dict:
        """The binding as the manifest gives it."""
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"type": self.kind, **fields}

    def check(self, name: str, found: dict[str, object]) -> None:
        """Raises ManifestGenerationError where a method's arguments are not those it `takes`."""
        if found != self.takes:
            wanted = ", ".join(f"{k}: {v.__name__}" for k, v in self.takes.items())
            raise ManifestGenerationError(
                f"input {name!r} is bound by {self.kind}(); write its arguments as ({wanted})"
            )


@dataclass(frozen=True)
class HoldBinding(Binding):
    """Down and up of a key or button."""

    keys: tuple[str, ...] = ()
    mouse_buttons: tuple[int, ...] = ()
    kind: ClassVar[str] = "hold"
    takes: ClassVar[dict[str, type]] = {"pressed": bool}


@dataclass(frozen=True)
class PressBinding(Binding):
    """One press of a key or button."""

    keys: tuple[str, ...] = ()
    mouse_buttons: tuple[int, ...] = ()
    kind: ClassVar[str] = "press"
    takes: ClassVar[dict[str, type]] = {}


@dataclass(frozen=True)
class AxisBinding(Binding):
    """Two opposed groups of keys, as a value in [-1, 1]."""

    positive_keys: tuple[str, ...]
    negative_keys: tuple[str, ...]
    kind: ClassVar[str] = "axis"
    takes: ClassVar[dict[str, type]] = {"value": float}


@dataclass(frozen=True)
class PointerBinding(Binding):
    """Movement of the pointer, in CSS pixels."""

    pointer_lock: bool = True
    kind: ClassVar[str] = "pointer"
    takes: ClassVar[dict[str, type]] = {"dx": float, "dy": float}


@dataclass(frozen=True)
class WheelBinding(Binding):
    """Turns of the wheel, in units of `step` CSS pixels."""

    step: int = 120
    kind: ClassVar[str] = "wheel"
    takes: ClassVar[dict[str, type]] = {"delta": float}


def hold(keys: tuple[str, ...] = (), mouse_buttons: tuple[int, ...] = ()) -> HoldBinding:
    """Calls the method with `pressed` when a key or button goes down and when it comes up."""
    return HoldBinding(tuple(keys), tuple(mouse_buttons))


def press(keys: tuple[str, ...] = (), mouse_buttons: tuple[int, ...] = ()) -> PressBinding:
    """Calls the method once for each press."""
    return PressBinding(tuple(keys), tuple(mouse_buttons))


def axis(positive_keys: tuple[str, ...], negative_keys: tuple[str, ...]) -> AxisBinding:
    """Calls the method with `value`: 1, -1 or 0 as the keys are held."""
    return AxisBinding(tuple(positive_keys), tuple(negative_keys))


def pointer(pointer_lock: bool = True) -> PointerBinding:
    """Calls the method with `dx, dy` as the pointer moves."""
    return PointerBinding(pointer_lock)


def wheel(step: int = 120) -> WheelBinding:
    """Calls the method with `delta` as the wheel turns."""
    if step < 1:
        raise ManifestGenerationError(f"wheel(step={step}) must be at least 1")
    return WheelBinding(step)
