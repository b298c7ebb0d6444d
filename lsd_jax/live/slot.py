"""One session's slot: its frames, its condition, its whole state as bytes."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from lsd_jax.conditioning import ask
from lsd_jax.live.journal import Journal
from lsd_jax.live.slots import Shown, Slots
from lsd_jax.types import StreamState

_DAMAGED = "this is no snapshot of this model, or it is damaged; take another"


class Slot:
    """A cold session in a free slot of `slots`; `close` frees it. Raises RuntimeError where none
    is free. `journal` records it."""

    def __init__(self, slots: Slots, seed: int = 0, journal: Journal | None = None):
        model = slots.config.model
        self.prompt, self.reference, self.seed = "", None, seed
        self.mask = np.full((model.height, model.width), 255, np.uint8)
        self._slots, self._index, self._closed = slots, slots.take(), False
        self._journal = journal
        self._begun = self._change(lambda: self._begin(seed), "begin", seed=seed)
        self._begun.add_done_callback(_seen)  # a slot may be left before anyone waits for it

    def _begin(self, seed: int, again: bool = False) -> None:
        self._slots.begin(self._index, seed, again)
        self._slots.set_mask(self._index, self.mask)

    def _change(self, make: Callable[[], Any], event: str = "", **fields: Any) -> asyncio.Future:
        """Runs `make` in the thread of the slots, unless by then the slot may be another's, and
        records it as that event."""

        def guarded() -> Any:
            if self._closed:
                raise RuntimeError("the session is over; open another")
            made = make()
            if self._journal and event:
                self._journal.note(event, **fields)
            return made

        return asyncio.wrap_future(self._slots.change(guarded))

    async def step(self, image: UInt8[np.ndarray, "h w 3"]) -> Shown:
        """The next frame, transformed. Raises what beginning the session raised, if it did."""
        await asyncio.shield(self._begun)
        stepped = self._slots.step(self._index, image)
        if self._journal:  # in the thread of the slots, so that events keep their order
            stepped.add_done_callback(partial(self._record, self._journal, image))
        return await asyncio.wrap_future(stepped)

    @staticmethod
    def _record(journal: Journal, image: np.ndarray, stepped: Future[Shown]) -> None:
        if not stepped.cancelled() and stepped.exception() is None:
            journal.frame(image, stepped.result().image)

    async def condition(
        self, prompt: str, reference: UInt8[np.ndarray, "h w 3"] | None
    ) -> None:  # fmt: skip
        """Another prompt and reference, which the next frame shows. The history is forgotten,
        unless the prompt is `prompts.CARRY_ON`.

        Raises ValueError for a prompt that the model does not take.
        """
        wanted, anew = ask([prompt], [reference], self._slots.config.model)
        await asyncio.shield(self._begun)
        pinned = await asyncio.to_thread(self._slots.pinned, wanted)
        steer = partial(self._slots.steer, self._index, pinned, anew)
        await self._change(steer, "condition", prompt=prompt, reference=reference)
        self.prompt, self.reference = prompt, reference

    async def set_mask(self, mask: UInt8[np.ndarray, "h w"]) -> None:
        """Confines the edit to where `mask` is 128 or more. Raises ValueError for a model that has
        no mask plane."""
        if "mask" not in self._slots.config.model.controls:
            raise ValueError("this model has no mask plane; it edits the whole picture")
        await self._change(partial(self._slots.set_mask, self._index, mask), "mask", mask=mask)
        self.mask = mask

    async def reset(self) -> None:
        """A cold session again, under the same condition, mask and seed."""
        if not self.prompt:
            await self._change(lambda: self._begin(self.seed, again=True), "reset")
            return
        wanted, anew = ask([self.prompt], [self.reference], self._slots.config.model)
        pinned = await asyncio.to_thread(self._slots.pinned, wanted)

        def begin() -> None:
            self._begin(self.seed, again=True)
            self._slots.steer(self._index, pinned, anew)

        await self._change(begin, "reset")

    async def snapshot(self) -> bytes:
        """The whole state: what `restore` needs to go on bit for bit."""
        state: StreamState = await self._change(lambda: self._slots.get(self._index))
        leaves: dict[str, Any] = {f"state/{name}": leaf for name, leaf in _named(state).items()}
        leaves["prompt"] = np.frombuffer(self.prompt.encode(), np.uint8)
        leaves["seed"], leaves["mask"] = np.int64(self.seed), self.mask
        nothing = np.zeros(0, np.uint8)
        leaves["reference"] = nothing if self.reference is None else self.reference
        file = io.BytesIO()
        np.savez(file, **leaves)
        return file.getvalue()

    async def restore(self, snapshot: bytes) -> None:
        """Goes on from `snapshot`. Raises ValueError where it is none of this model's shapes, and
        then changes nothing."""
        now: StreamState = await self._change(lambda: self._slots.get(self._index))
        limit = 2 * sum(x.nbytes for x in jax.tree.leaves(now))
        leaves = await asyncio.to_thread(_read_leaves, snapshot, limit)
        wanted = {f"state/{name}": leaf for name, leaf in _named(now).items()}
        wanted["mask"] = self.mask
        for name, leaf in wanted.items():
            found = leaves.get(name)
            if found is None or found.shape != leaf.shape or found.dtype != leaf.dtype:
                raise ValueError(f"no snapshot of this model: {name} is absent or of another shape")
            if np.issubdtype(leaf.dtype, np.inexact) and not np.isfinite(found).all():
                raise ValueError(f"the snapshot is damaged: {name} is not finite")
        prompt, reference, seed = self._read_condition(leaves)
        tree = jax.tree.structure(now)
        state = jax.tree.unflatten(tree, [leaves[f"state/{name}"] for name in _named(now)])
        mask = leaves["mask"]

        def put() -> None:
            self._slots.put(self._index, state)
            self._slots.set_mask(self._index, mask)

        await self._change(put, "restore", snapshot=snapshot)
        self.prompt, self.reference, self.seed, self.mask = prompt, reference, seed, mask

    def _read_condition(
        self, leaves: dict[str, np.ndarray]
    ) -> tuple[str, UInt8[np.ndarray, "h w 3"] | None, int]:
        """Prompt, reference and seed of a snapshot, all of which `reset` can use."""
        words, seed, model = leaves["prompt"], leaves["seed"], self._slots.config.model
        reference = leaves.get("reference", np.zeros(0, np.uint8))
        if words.dtype != np.uint8 or words.ndim != 1:
            raise ValueError("the snapshot is damaged: its prompt is no text")
        try:
            prompt = words.tobytes().decode()
        except UnicodeDecodeError:
            raise ValueError("the snapshot is damaged: its prompt is no text") from None
        if seed.shape or seed.dtype.kind not in "iu" or not 0 <= int(seed) < 2**31:
            raise ValueError("the snapshot is damaged: its seed is not in [0, 2^31)")
        if reference.size and (
            reference.shape != (model.height, model.width, 3) or reference.dtype != np.uint8
        ):
            raise ValueError("the snapshot's reference is of another size or type")
        picture = reference if reference.size else None
        if prompt:
            ask([prompt], [picture], model)
        return prompt, picture, int(seed)

    def close(self) -> None:
        """Frees the slot."""
        if not self._closed:
            self._closed = True  # first: what `guarded` refuses from now on
            self._slots.release(self._index)
            if self._journal:
                self._journal.close()


def _seen(done: asyncio.Future) -> None:
    """Takes note of an error, which asyncio would log; whoever waits is told all the same."""
    if not done.cancelled():
        done.exception()


def _named(state: StreamState) -> dict[str, np.ndarray]:
    leaves = jax.tree.leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}


def _read_leaves(snapshot: bytes, limit: int) -> dict[str, np.ndarray]:
    """The arrays of a snapshot. Raises ValueError for anything else, and where they would unpack to
    more than `limit` bytes."""
    leaves: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(snapshot)) as archive:
            large = sum(info.file_size for info in archive.infolist()) > limit
            if large or archive.testzip() is not None:
                raise zipfile.BadZipFile
        with np.load(io.BytesIO(snapshot), allow_pickle=False) as found:
            leaves = {name: found[name] for name in found.files}
    except Exception as error:  # what reads archives and headers raises a dozen kinds
        raise ValueError(_DAMAGED) from error
    arrays = all(isinstance(leaf, np.ndarray) for leaf in leaves.values())  # others come as bytes
    if not arrays or not {"prompt", "seed", "mask"} <= leaves.keys():
        raise ValueError(_DAMAGED)
    return leaves
