"""A recorded session once more: the same inputs in the same order, and the same pictures."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from lsd_jax.data import pictures
from lsd_jax.data.video import VideoSource
from lsd_jax.live import journal
from lsd_jax.live.slot import Slot
from lsd_jax.live.slots import Slots

Show = Callable[[UInt8[np.ndarray, "h w 3"], float], None]
"""Takes a picture and the seconds since the session began."""


@dataclass
class Replayed:
    """How many pictures were made again, and the first that came out otherwise, if one did."""

    frames: int = 0
    equal: int = 0
    first_difference: int | None = None

    def count(self, equal: bool) -> None:
        """Notes one picture."""
        if not equal and self.first_difference is None:
            self.first_difference = self.frames
        self.frames, self.equal = self.frames + 1, self.equal + equal


async def replay(folder: Path, slots: Slots, show: Show) -> Replayed:
    """Plays the record in `folder` in a slot of `slots`, which are of the recorded model.

    Raises ValueError for a damaged record.
    """
    _, events = journal.read(folder)
    first = next(events, {})
    if first.get("event") != "begin":
        raise ValueError(f"the record in {folder} does not begin with a session's beginning")
    found, model = Replayed(), slots.config.model
    slot, frames = Slot(slots, first["seed"]), None
    with ExitStack() as stack:
        stack.callback(slot.close)
        for event in events:
            if event["event"] != "frame":
                await _apply(slot, folder, event)
                continue
            if frames is None:
                source = VideoSource(folder / "input.mkv", model.height, model.width)
                frames = iter(stack.enter_context(source))
            picture = next(frames, None)
            if picture is None:  # the recording process was killed: its last frames are not there
                break
            image, time_s = picture
            shown = await slot.step(image)
            found.count(journal.digest(shown.image) == event["shown"])
            show(shown.image, time_s)
    return found


async def _apply(slot: Slot, folder: Path, event: dict[str, Any]) -> None:
    match event:
        case {"event": "condition", "prompt": prompt, "reference": name}:
            reference = pictures.read_image(folder / name) if name else None
            await slot.condition(prompt, reference)
        case {"event": "mask", "mask": name}:
            await slot.set_mask(pictures.read_image(folder / name)[..., 0])
        case {"event": "reset"}:
            await slot.reset()
        case {"event": "restore", "snapshot": name}:
            await slot.restore((folder / name).read_bytes())
        case {"event": "end"}:
            pass
        case _:
            raise ValueError(f"the record in {folder} has an unknown event {event}")
