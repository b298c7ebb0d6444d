"""A session's record: replayed it gives the same pictures, and what it lacks is said."""

import asyncio
import gc
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lsd_jax.live import journal
from lsd_jax.live.journal import Journal
from lsd_jax.live.replay import replay
from lsd_jax.live.slot import Slot
from lsd_jax.live.slots import Slots
from lsd_jax.stream import prepare

SEED = 7
ABOUT = {"checkpoint": "", "overrides": [], "commit": "abc"}
FIRST = json.dumps({"format": 1, **ABOUT}) + "\n"
BEGIN = json.dumps({"event": "begin", "seed": SEED}) + "\n"


def scenario(work):
    return asyncio.run(asyncio.wait_for(work, 120))


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def prepared(small_config, small_model):
    return prepare(small_model, small_config)


@pytest.fixture(scope="module")
def slots(small_config, prepared):
    made = Slots(prepared, small_config, 3)
    yield made
    made.close()


@pytest.fixture(scope="module")
def alone(small_config, prepared):
    made = Slots(prepared, small_config, 1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def recorded(slots, tmp_path_factory):
    """A session with everything in it, beside another one; its folder and what it showed."""
    folder = tmp_path_factory.mktemp("records") / "one"

    record = Journal(folder, ABOUT)

    async def run():
        other, slot = Slot(slots, 1), Slot(slots, SEED, record)
        shown, frames = [], iter(pictures(14))

        async def show(count):
            for _ in range(count):
                beside = asyncio.ensure_future(other.step(pictures(1)[0]))
                shown.append((await slot.step(next(frames))).image)
                await beside

        await slot.condition("make it night", None)
        await show(2)
        kept = await slot.snapshot()
        await slot.condition("use the reference", pictures(1, 5)[0])
        await show(2)
        await slot.set_mask(pictures(1, 6)[0, ..., 0])
        await show(2)
        await slot.reset()
        await show(2)
        await slot.restore(kept)
        await show(2)
        late = asyncio.ensure_future(slot.condition("film noir", None))  # while frames are stepped
        await show(4)
        await late
        slot.close()
        other.close()
        return shown

    shown = scenario(run())
    record.wait(30.0)
    return folder, shown


def test_a_replay_shows_what_the_session_showed(recorded, alone):
    folder, shown = recorded
    found = []
    replayed = scenario(replay(folder, alone, lambda image, _: found.append(image)))
    np.testing.assert_array_equal(found, shown)
    assert (replayed.frames, replayed.equal, replayed.first_difference) == (14, 14, None)
    about, events = journal.read(folder)
    assert about["commit"] == "abc" and alone.free == 1
    assert list(events)[-1] == {"event": "end", "reason": "the session ended"}


def test_the_first_picture_that_differs_is_named(recorded, alone, tmp_path):
    """Another seed is another session."""
    folder, _ = recorded
    lines = (folder / "log.jsonl").read_text().splitlines()
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    other = json.dumps({"event": "begin", "seed": SEED + 1})
    (tmp_path / "log.jsonl").write_text("\n".join([lines[0], other, *lines[2:]]))
    replayed = scenario(replay(tmp_path, alone, lambda *_: None))
    assert replayed.first_difference == 0 and replayed.equal < replayed.frames == 14


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "lsd serve --record"),
        ("", "damaged"),
        (FIRST[:-9], "damaged"),
        ("\xff" + FIRST, "damaged"),
        ("[]\n", "damaged"),
        ('{"format": 9}\n', "format 9"),
        ('{"format": 1}\n' + BEGIN, "damaged"),
        (FIRST.replace("[]", "[3]") + BEGIN, "damaged"),
        (FIRST, "beginning"),
        (FIRST + '{"event": "reset"}\n', "beginning"),
        (FIRST + '{"event"\n' + BEGIN, "damaged"),
        (FIRST + '{"event": "begin"}\n', "damaged"),
        (FIRST + BEGIN.replace("7", "-7"), "damaged"),
        (FIRST + BEGIN + "[1]\n", "damaged"),
        (FIRST + BEGIN + '{"seed": 7}\n', "damaged"),
        (FIRST + BEGIN + '{"event": "frame"}\n', "damaged"),
        (FIRST + BEGIN + '{"event": "mask", "mask": 3}\n', "damaged"),
        (FIRST + BEGIN + FIRST, "damaged"),
        (FIRST + BEGIN + BEGIN, "unknown event"),
    ],
)
def test_what_is_no_record_is_refused(text, match, alone, tmp_path):
    if text is not None:
        (tmp_path / "log.jsonl").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=match):
        scenario(replay(tmp_path, alone, lambda *_: None))


@pytest.mark.parametrize("cut", [1, 9, 40])
def test_a_record_that_a_full_disk_has_cut_short_is_read_up_to_there(cut, tmp_path):
    last = json.dumps({"event": "condition", "prompt": "make it night", "reference": None})
    (tmp_path / "log.jsonl").write_text(FIRST + BEGIN + last[:-cut])
    about, events = journal.read(tmp_path)
    assert about["commit"] == "abc" and list(events) == [json.loads(BEGIN)]


def test_a_record_may_lie_in_a_folder_with_a_colon(alone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, image = Path("re:c") / "x", pictures(1)[0]
    record = Journal(folder, ABOUT)
    record.note("begin", seed=SEED)
    record.frame(image, image)
    record.wait(30.0)
    assert [event["event"] for event in journal.read(folder)[1]] == ["begin", "frame", "end"]
    assert scenario(replay(folder, alone, lambda *_: None)).frames == 1


def test_a_slot_that_is_left_before_it_began_logs_nothing(alone, caplog):
    """As that of a record whose second event is refused."""

    async def run():
        held = alone.change(lambda: time.sleep(0.2))  # the thread is busy
        Slot(alone, SEED).close()
        await asyncio.wrap_future(held)
        await asyncio.wrap_future(alone.change(lambda: None))
        await asyncio.sleep(0)

    scenario(run())
    gc.collect()
    assert not caplog.records


def test_a_disk_that_fails_ends_the_record_and_not_the_session(slots, tmp_path, caplog):
    (tmp_path / "taken").write_text("a file where the folder should be")

    async def run():
        slot = Slot(slots, SEED, Journal(tmp_path / "taken", {}))
        shown = [(await slot.step(image)).image for image in pictures(3)]
        slot.close()
        return shown

    assert len(scenario(run())) == 3
    assert "recorded no further" in caplog.text


def test_a_slow_disk_holds_up_nobody(tmp_path, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(journal, "_lossless", lambda *_: gate.wait(30) and None)
    record = Journal(tmp_path / "slow", {})
    for image in pictures(1).repeat(journal.LATE + 10, axis=0):
        record.frame(image, image)  # would wait here for ever
    gate.set()
    record.close()
