"""What is measured of streams whose quality is known: the truth, the input, another's truth."""

import io

import numpy as np
import pytest
from rich.console import Console

from lsd_jax.config import ModelConfig
from lsd_jax.data import edits
from lsd_jax.data.plan import HELD_OUT_WORLDS
from lsd_jax.data.prompts import PARAPHRASES
from lsd_jax.evaluate import held_out
from lsd_jax.evaluate.fidelity import measure
from lsd_jax.evaluate.held_out import ASKS, CANDIDATES, PAIRS
from lsd_jax.evaluate.report import lines, summary, tables

MODEL = ModelConfig(height=32, width=32, patch=8)
FRAMES = 3


@pytest.fixture(scope="module")
def clips():
    return list(held_out.clips(MODEL, 2, FRAMES, seed=0))


def oracle(clips, answer):
    """A stream that recognises its prompts and input and shows the truth of `answer(ask)`."""
    known = {
        (text, clip.source.tobytes()): clip.truths[CANDIDATES.index(answer(ask))]
        for clip in clips
        for ask, text in zip(ASKS, clip.prompts, strict=True)
    }

    def start(texts, references):
        assert len(texts) == len(references)
        return lambda frames: np.stack(
            [known[t, f.tobytes()] for t, f in zip(texts, frames, strict=True)]
        )

    return start


def report(clips, answer, batch=8):
    return summary(list(measure(oracle(clips, answer), clips, batch, lambda frames: None)))


def test_the_truth_scores_full_marks(clips):
    found = report(clips, lambda ask: ask.name)
    assert found["streams"] == 2 * len(ASKS)
    assert found["frames"] == FRAMES
    assert found["psnr_db"]["mean"] == found["psnr_db"]["held_out_prompts"] == 60
    assert set(found["prompt_accuracy"].values()) == {1.0}
    for rows in (found["by_edit"], found["held_out_prompts"]):
        assert all(row["texture"] == pytest.approx(1) for row in rows.values())
    assert found["drift"]["psnr_db_by_frame"] == [60] * FRAMES


def test_the_input_unchanged_gains_nothing_and_is_recognised(clips):
    found = report(clips, lambda ask: "identity")
    assert found["gain_db"]["mean"] == 0
    assert found["gain_db"]["edits"] >= len(edits.NAMES)
    assert found["psnr_db"]["mean"] == found["psnr_db"]["identity"] < 30
    assert found["prompt_accuracy"]["footage"] == 0
    assert found["prompt_accuracy"]["held_out_pairs"] == 0
    assert all(row["gain"] == 0 for row in found["by_edit"].values())
    assert found["by_edit"]["night"]["taken_for"] == {"identity": 2}


def test_one_wrong_edit_counts_only_against_itself(clips):
    found = report(clips, lambda ask: "fog" if ask.name == "night" else ask.name)
    rows = found["by_edit"]
    assert rows["night"]["accuracy"] == 0 and rows["night"]["taken_for"] == {"fog": 2}
    assert found["prompt_accuracy"]["footage"] == pytest.approx(15 / 16)
    assert found["prompt_accuracy"]["scene"] == 1


def test_held_out_pairs_count_only_against_held_out_prompts(clips):
    found = report(clips, lambda ask: PAIRS[0] if ask.name == "night" else ask.name)
    assert set(found["by_edit"]["night"]["taken_for"]).isdisjoint(PAIRS)
    assert found["held_out_prompts"]["night"]["taken_for"] == {PAIRS[0]: 2}


def test_batches_do_not_matter(clips):
    answer = dict.fromkeys(CANDIDATES, "fog").get
    assert report(clips, lambda a: answer(a.name), 5) == report(clips, lambda a: answer(a.name), 64)


def test_mean_over_edits_and_frames_agree(clips):
    found = report(clips, lambda ask: "sepia")
    by_frame = np.mean(found["drift"]["psnr_db_by_frame"])
    assert by_frame == pytest.approx(found["psnr_db"]["mean"])
    assert found["psnr_db"]["by_edit"]["sepia"] == 60


def test_tables_and_lines_show_every_row(clips):
    found = report(clips, lambda ask: "sepia")
    assert sum(table.row_count for table in tables(found)) == len(ASKS)
    assert any("60.00" in line or "dB" in line for line in lines(found))


def test_what_edits_are_taken_for_leaves_room_for_figures(clips):
    printed = io.StringIO()
    for table in tables(report(clips, lambda ask: "background_from_reference")):
        Console(file=printed, width=80).print(table)
    rows = [line.split() for line in printed.getvalue().splitlines()]
    headings = [row[1:6] for row in rows if row[:1] == ["edit"]]
    assert headings and all(
        row == ["psnr", "identity", "gain", "accuracy", "texture"] for row in headings
    )


def test_clips_are_reproducible_held_out_and_start_at_any_chunk(clips, monkeypatch):
    monkeypatch.setattr(held_out, "CHUNK", 2)  # the clip now takes two renderings
    again = list(held_out.clips(MODEL, 2, FRAMES, seed=0))
    for one, two in zip(clips, again, strict=True):
        assert one.prompts == two.prompts
        assert np.abs(one.truths.astype(int) - two.truths).max() <= 1
    assert HELD_OUT_WORLDS == 1 << 30
    other = next(held_out.clips(MODEL, 1, FRAMES, seed=1))
    assert (other.source != clips[0].source).any()


def test_truths_are_those_of_the_video_edits(clips):
    """Up to the rounding of the input to bytes, which `edits.apply` starts from."""
    for name in ("night", "sepia", "negative", "hue"):
        text = PARAPHRASES[name][0][0]
        truth = clips[0].truths[CANDIDATES.index(name)].astype(int)
        assert np.abs(edits.apply(text, clips[0].source) - truth).max() <= 2


def test_every_scene_edit_shows_and_prompts_differ(clips):
    for clip in clips:
        assert len(set(clip.prompts)) == len(ASKS)
        assert clip.truths.shape == (len(CANDIDATES), FRAMES, 32, 32, 3)
    for kind in held_out.SCENES:
        at = CANDIDATES.index(kind)
        assert any((clip.truths[at] != clip.source).any() for clip in clips), kind
