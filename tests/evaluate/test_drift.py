"""Long streams and their statistics, against streams whose drift is known."""

import io

import jax.numpy as jnp
import numpy as np
import pytest

from lsd_jax.config import ModelConfig
from lsd_jax.evaluate import drift, metrics

MODEL = ModelConfig(height=32, width=32, patch=8)
RNG = np.random.default_rng(0)
PICTURE = RNG.integers(60, 180, (1, 64, 64, 3), dtype=np.uint8)


def test_streams_that_return_their_input():
    told = []
    found = drift.long_run(
        lambda texts, references: lambda frames: frames, MODEL, 20, 4, 0, told.append
    )
    assert sum(told) == drift.STREAMS * 20
    assert found["frames"] == 20 and found["streams"] == 19 == len(found["by_edit"])
    assert found["cold"] == pytest.approx(
        {"frames": 20, "behind_db": 0, "worst_behind_db": 0}, abs=1e-4
    )
    assert found["identity"]["early_db"] < found["by_edit"]["recolour"]["early_db"]
    assert found["bin_ends"] == list(range(1, 21))
    assert 3 < found["early_db"] < 30
    assert found["by_edit"]["night"]["late_db"] < 15 and found["flicker"] > 0


class Counting:
    """Streams that paint how many frames they have seen, and can be gone on with."""

    def __init__(self):
        self.seen, self.asked = 0, []

    def __call__(self, frames):
        self.asked.append(frames.shape[1])
        shade = (np.arange(frames.shape[1]) + self.seen) % 200
        self.seen += frames.shape[1]
        return np.broadcast_to(shade[:, None, None, None], frames.shape).astype(np.uint8)

    def fingerprint(self):
        return "counting"

    def snapshot(self):
        return [np.array(self.seen)]

    def restore(self, snapshot):
        self.seen = int(snapshot[0])


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch):
    opened = []

    def streams(texts, references):
        opened.append(Counting())
        return opened[-1]

    def run(frames, work=None):
        return drift.long_run(streams, MODEL, frames, 2, 0, lambda n: None, count=2, work=work)

    whole = run(64)
    run(40, tmp_path)  # ends in the middle of a chunk
    longer = run(64, tmp_path)
    assert opened[-2].asked == [16, 8] and longer == whole
    again = run(64, tmp_path)
    assert opened[-2].asked == [] and again == whole
    shorter = run(20, tmp_path)  # whose figures are there, and which takes nothing away
    assert shorter == run(20) and opened[-4].asked == []
    run(64, tmp_path)
    assert opened[-2].asked == []
    monkeypatch.setattr(Counting, "fingerprint", lambda self: "of other weights")
    run(64, tmp_path)
    assert opened[-2].asked == [16] * 4
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize("left", [0, 100, 0.5])
def test_damaged_streams_are_named(tmp_path, left):
    def run():
        drift.long_run(lambda *_: Counting(), MODEL, 8, 1, 0, lambda n: None, 1, tmp_path)

    run()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(left * len(whole) if left < 1 else left)])
    with pytest.raises(ValueError, match=f"{path} is damaged; remove it"):
        run()
    path.unlink()
    run()


def named(**arrays):
    return lambda path: np.savez(path, **arrays)


NO_ARCHIVE = io.BytesIO()
np.save(NO_ARCHIVE, np.zeros(3))
WHOLE = {"offset": 8, "leaves": 1, "state_0": 8, "before": np.zeros((1, 2, 32, 32, 3), np.uint8)}
WHOLE |= {name: np.zeros((1, 8)) for name in drift.AVERAGED}


@pytest.mark.parametrize(
    "write",
    [
        named(),
        named(**WHOLE | {"offset": np.zeros(2)}),
        named(**WHOLE | {"psnr_db": 0}),
        named(**WHOLE | {"psnr_db": np.zeros((3, 5))}),
        named(**WHOLE | {"psnr_db": np.array(["a"], object)}),
        lambda path: path.write_bytes(NO_ARCHIVE.getvalue()),
    ],
)
def test_a_file_of_something_else_is_named(tmp_path, write):
    def run():
        drift.long_run(lambda *_: Counting(), MODEL, 8, 1, 0, lambda n: None, 1, tmp_path)

    run()
    (path,) = tmp_path.iterdir()
    write(path)
    with pytest.raises(ValueError, match=f"{path} is damaged; remove it"):
        run()
    named(**WHOLE)(path)
    run()


def series(psnr, **others):
    return {name: np.ones_like(psnr) for name in drift.AVERAGED} | {"psnr_db": psnr} | others


def test_summary_of_a_straight_decline():
    line = 30 - 0.01 * np.arange(1000)
    fade = np.stack([1 - 0.0005 * np.arange(1000)] * 2)
    anew = np.full((2, 160), 40.0)
    found = drift.summarise(
        series(np.stack([line, 1.5 * line]), brightness=fade), anew, ("night", "fog")
    )
    assert found["cold"]["behind_db"] == pytest.approx(40 - 1.25 * line[-160:].mean())
    assert found["cold"]["worst_behind_db"] == pytest.approx(40 - line[-160:].mean())
    assert set(found["by_edit"]) == {"night", "fog"} and found["identity"] is None
    assert found["slope_db_per_1000_frames"] == pytest.approx(-12.5)
    assert len(found["curves"]["psnr_db"]) == drift.BINS and found["bin_ends"][-1] == 1000
    early, late = line[10:100].mean(), line[-100:].mean()
    assert found["early_db"] == pytest.approx(1.25 * early)
    assert found["late_db"] == pytest.approx(1.25 * late)
    assert found["worst_stream_drop_db"] == pytest.approx(1.5 * (early - late))
    assert found["brightness_ratio"] == pytest.approx(
        fade[0, -100:].mean() / fade[0, 10:100].mean()
    )
    assert found["contrast_ratio"] == 1
    assert found["curves"]["worst_psnr_db"][0] == pytest.approx(1.5 * line[:20].mean())


def statistics(out, truth, before=None):
    before = np.concatenate([out, truth]) if before is None else before
    return {k: float(v[0]) for k, v in metrics.statistics(out, truth, before).items()}


def test_the_truth_itself():
    found = statistics(PICTURE, PICTURE)
    assert found["mse"] == found["flicker"] == 0 == pytest.approx(found["features"], abs=1e-5)
    assert found["ssim"] == pytest.approx(1) and found["texture"] == 1
    assert found["brightness"] == pytest.approx(1, abs=0.01)


def test_brightness_and_contrast_are_told_apart():
    brighter = statistics(PICTURE + 40, PICTURE)
    assert brighter["brightness"] == pytest.approx(160 / 120, rel=0.02)
    assert brighter["contrast"] == pytest.approx(1, rel=0.02)
    assert brighter["features"] == pytest.approx(0, abs=0.01)
    flatter = statistics((120 + (PICTURE.astype(int) - 120) // 2).astype(np.uint8), PICTURE)
    assert flatter["brightness"] == pytest.approx(1, rel=0.02)
    assert flatter["contrast"] == pytest.approx(0.5, rel=0.05)
    assert flatter["features"] == pytest.approx(6.02, abs=0.4)  # half the amplitude in each band


def test_ssim_by_hand():
    """Of flat pictures, where only the means count: (2 a b + c1) / (a^2 + b^2 + c1)."""
    a, b = (jnp.full((1, 32, 32, 1), v) for v in (0.2, 0.6))
    expected = (2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4)
    assert float(metrics.ssim(a, b)[0]) == pytest.approx(expected, rel=1e-4)
    noise = jnp.asarray(RNG.normal(0, 0.2, a.shape), jnp.float32)
    assert float(metrics.ssim(a + noise, a - noise)[0]) < -0.5  # structure turned about


def test_flicker_counts_only_where_the_truth_stands_still():
    truth = np.concatenate([PICTURE, PICTURE])
    truth[1, :, :32] += 50  # the left half changes
    out = truth.copy()
    out[1, :, :32] += 9
    out[1, :, 32:] += 6
    found = metrics.statistics(out[1:], truth[1:], np.stack([out[0], truth[0]]))
    assert float(found["flicker"][0]) == pytest.approx(6)


def test_the_error_of_an_edit_counts_only_what_it_changes():
    truth = PICTURE.copy()
    truth[:, :8] = 255 - truth[:, :8]
    out = (
        truth.astype(int) - 51 * (np.arange(64) < 16)[None, :, None, None]
    )  # in half of those rows
    found = metrics.edited_mse(np.clip(out, 0, 255).astype(np.uint8), truth, PICTURE)
    assert float(found[0]) == pytest.approx(0.04, rel=1e-3)
    assert np.isnan(metrics.edited_mse(PICTURE, PICTURE, PICTURE))


def test_identity_is_of_the_frames_that_show_the_object():
    psnr = np.array([[10.0, np.nan, 30.0, 40.0], [20.0, 20.0, np.nan, np.nan]])
    found = drift.identity(psnr, slice(0, 2), slice(2, 4))
    assert found == {"early_db": pytest.approx(50 / 3), "late_db": 35}
    assert drift.identity(psnr[1:], slice(0, 2), slice(2, 4)) is None
