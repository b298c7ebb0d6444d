"""Checkpoints: exact round trips, any damage found in any file, any mesh to any mesh."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lsd_jax import checkpoint, digests
from lsd_jax.checkpoint import CheckpointError, Checkpoints, load_weights, save_weights, verify
from lsd_jax.config import Config, ModelConfig, TrainConfig

CONFIG = Config("test", ModelConfig(layers=2), train=TrainConfig(seed=3))


def weights(seed: int = 0) -> dict:
    """A small tree with every kind of leaf that a model has."""
    key = jax.random.key(seed)
    return {
        "blocks": {"w": jax.random.normal(key, (2, 16, 32)), "scale": jnp.ones(16, jnp.bfloat16)},
        "heads": [jnp.arange(8, dtype=jnp.int8), jnp.float32(seed)],
        "quantised": jnp.linspace(-1, 1, 24).astype(jnp.float8_e4m3fn).reshape(3, 8),
    }


def train_state(seed: int = 0) -> dict:
    """Parameters, their optimiser after one real step, and a key."""
    params = {"w": jax.random.normal(jax.random.key(seed), (8, 16)), "b": jnp.zeros(16)}
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(0.0, 1e-3, 10))
    )
    gradients = jax.tree.map(jnp.ones_like, params)
    with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction is 0.9 ** int32
        updates, moments = optimiser.update(gradients, optimiser.init(params), params)
    params = optax.apply_updates(params, updates)
    return {"params": params, "opt": moments, "key": jax.random.key(seed + 1)}


def abstract(tree, sharding=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def assert_equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file())


def flip(path: Path, at: int = -1, mask: int = 1):
    data = bytearray(path.read_bytes())
    data[at] ^= mask
    path.write_bytes(data)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("shipped") / "tiny"
    save_weights(path, weights(), CONFIG)
    return path


@pytest.fixture
def copy(shipped, tmp_path) -> Path:
    return shutil.copytree(shipped, tmp_path / "tiny")


@pytest.fixture
def three(tmp_path) -> Checkpoints:
    """Steps 10, 20 and 30, with a tree, and an extra, that tell which."""
    with Checkpoints(tmp_path / "run") as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, weights(step), CONFIG, {"batch": step})
    return checkpoints


# Round trips.


def test_weights_round_trip(shipped):
    tree, config = load_weights(shipped, abstract(weights()), CONFIG.model)
    assert_equal(tree, weights())
    assert config == CONFIG
    assert_equal(load_weights(shipped)[0], weights())  # lists and dicts need no abstract tree


def test_train_state_round_trip(tmp_path):
    extra = {"data": {"index": 123, "seed": 2**40}, "loss": 0.1, "names": ["a", "é"]}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, train_state(), CONFIG, extra)
    fresh = Checkpoints(tmp_path)
    tree, step, found = fresh.restore(abstract(train_state(5)))
    assert_equal(tree, train_state())
    assert (step, found, fresh.steps(), fresh.config()) == (7, extra, [7], CONFIG)
    assert_equal(load_weights(tmp_path / "7")[0]["params"], train_state()["params"])


def test_what_is_saved_may_be_donated(tmp_path):
    tree = {"w": jnp.arange(500_000.0)}
    expected = np.array(tree["w"])
    overwrite = jax.jit(lambda t: jax.tree.map(lambda x: -x - 1, t), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree, CONFIG)
        for _ in range(3):
            tree = overwrite(tree)
        restored, _, _ = checkpoints.restore(abstract(tree))
    np.testing.assert_array_equal(restored["w"], expected)


def test_only_a_few_files_without_the_name_of_the_machine(shipped):
    assert len(files(shipped)) <= 16
    assert {p.name for p in shipped.iterdir()} == {"arrays", "config.json", "digests.json"}
    here = str(shipped.parent).encode()
    assert not [p for p in files(shipped) if here in p.read_bytes()]
    assert not [p for p in shipped.rglob("*") if p.is_dir() and not any(p.iterdir())]  # git's bane


@pytest.mark.multidevice
@pytest.mark.parametrize("shape", [(2, 4), (8, 1), None])
def test_saved_on_one_mesh_restores_on_another(tmp_path, shape):
    tree = {"w": jax.random.normal(jax.random.key(0), (8, 16)), "b": jnp.arange(8.0)}

    def placed(shape):
        mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
        return NamedSharding(mesh, PartitionSpec("model"))

    sharding = placed(shape) if shape else jax.sharding.SingleDeviceSharding(jax.devices()[1])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, jax.device_put(tree, placed((4, 2))), CONFIG)
        restored, _, _ = checkpoints.restore(abstract(tree, sharding))
    assert_equal(restored, tree)
    assert all(x.sharding.is_equivalent_to(sharding, x.ndim) for x in restored.values())
    load_weights(tmp_path / "1")  # on the first device, wherever it was saved


# Damage.


def test_a_flipped_byte_is_found_in_each_file(copy):
    rng = np.random.default_rng(0)
    for file in files(copy):
        size = file.stat().st_size
        for at in {0, size - 1, *rng.integers(0, size, 8).tolist()}:
            mask = int(rng.integers(1, 256))
            flip(file, at, mask)
            with pytest.raises(CheckpointError, match=f"^{re.escape(str(file))}: damaged"):
                load_weights(copy)
            flip(file, at, mask)
    verify(copy)


def test_no_flip_at_all_escapes_the_digests_digest(copy):
    file = copy / "digests.json"
    for at in range(file.stat().st_size):
        flip(file, at, 1 << at % 8)
        with pytest.raises(CheckpointError, match="digests.json: damaged"):
            verify(copy)
        flip(file, at, 1 << at % 8)
    verify(copy)


@pytest.mark.parametrize("keep", ["nothing", "half", "all but a byte", "one byte more"])
def test_another_length_is_found_in_each_file(copy, keep):
    for file in files(copy):
        data = file.read_bytes()
        half, short = data[: len(data) // 2], data[:-1]
        kept = {"nothing": b"", "half": half, "all but a byte": short, "one byte more": data + b" "}
        file.write_bytes(kept[keep])
        with pytest.raises(CheckpointError, match=f"^{re.escape(str(file))}: (damaged|[0-9]+ byt)"):
            load_weights(copy)
        file.write_bytes(data)
    verify(copy)


def test_a_deleted_file_is_found(copy):
    for file in files(copy):
        data = file.read_bytes()
        file.unlink()
        with pytest.raises(CheckpointError, match=f"^{re.escape(str(file))}: missing"):
            load_weights(copy)
        file.write_bytes(data)
    verify(copy)


@pytest.mark.parametrize("name", ["arrays/d/stray", ".DS_Store", "arrays/digests.json"])
def test_an_unexpected_file_is_found(copy, name):
    (copy / name).write_text("x")
    with pytest.raises(CheckpointError, match=f"{re.escape(name)}: unexpected file"):
        verify(copy)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"files": 3}', "\xff", "[" * 100_000])
def test_a_foreign_digests_file_is_refused(copy, text):
    (copy / "digests.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match="digests.json: damaged"):
        verify(copy)


def test_no_directory(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere.*no such checkpoint"):
        load_weights(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="none has been saved"):
        Checkpoints(tmp_path / "nowhere").restore(abstract(weights()))
    assert Checkpoints(tmp_path / "nowhere").steps() == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "undigested"])
def test_a_damaged_newest_step_falls_back(three, caplog, damage):
    newest = three.directory / "30"
    file = newest / "arrays" / "_METADATA"
    if damage == "flip":
        flip(file)
    elif damage == "truncate":
        file.write_bytes(file.read_bytes()[:9])
    else:
        file = newest / "digests.json" if damage == "undigested" else file
        file.unlink()
    tree, step, extra = Checkpoints(three.directory).restore(abstract(weights()))
    assert_equal(tree, weights(20))
    assert (step, extra) == (20, {"batch": 20})
    (record,) = caplog.records
    assert record.levelname == "WARNING" and str(file) in record.getMessage()
    with pytest.raises(CheckpointError, match=re.escape(str(file))):
        three.restore(abstract(weights()), step=30)  # who asks for it by name gets no other


def test_all_damaged(three):
    for step in three.steps():
        flip(three.directory / str(step) / "config.json")
    newest = re.escape(str(three.directory / "30" / "config.json"))
    with pytest.raises(CheckpointError, match=f"no good one is left: {newest}: damaged"):
        three.restore(abstract(weights()))
    with pytest.raises(CheckpointError, match=newest):
        three.config()


def test_damaged_steps_are_pruned_before_good_ones(three):
    flip(three.directory / "30" / "config.json")
    _, step, _ = three.restore(abstract(weights()))
    three.save(25, weights(25), CONFIG)
    three.wait()
    assert (step, three.steps()) == (20, [10, 20, 25])


# Another model.


def test_another_architecture_names_the_fields(shipped):
    other = dataclasses.replace(CONFIG.model, layers=5, mlp=512)
    with pytest.raises(CheckpointError, match="layers: 5 != 2, mlp: 512 != 1024|mlp.*layers: 5"):
        load_weights(shipped, config=other)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"blocks": {"w": jnp.ones((2, 16, 8)), "scale": jnp.ones(16, jnp.bfloat16)}},
         r"blocks.w: expected float32\[2, 16, 8\], found float32\[2, 16, 32\]"),
        ({"heads": [jnp.arange(8), jnp.float32(0)]},
         r"heads.0: expected int32\[8\], found int8\[8\]"),
        ({"more": jnp.ones(3)}, r"more: expected float32\[3\], found none"),
        ({"quantised": None}, r"quantised: expected none, found float8_e4m3fn\[3, 8\]"),
        ({"blocks": None, "heads": None, "a": jnp.ones(1)}, "and 1 more leaves$"),
    ],
)  # fmt: skip
def test_a_leaf_of_another_shape_is_named(shipped, change, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        load_weights(shipped, abstract(weights() | change))
    assert "\n" not in str(caught.value)


def test_a_config_of_another_version_is_refused(copy, tmp_path):
    values = json.loads((copy / "config.json").read_text())
    values["model"]["novel"] = 1
    (copy / "config.json").write_text(json.dumps(values))
    (copy / "digests.json").unlink()
    digests.seal(copy)
    with pytest.raises(CheckpointError, match="config.json: not of this version.*novel"):
        load_weights(copy)


# Saving.


def test_a_checkpoint_without_a_config_is_refused(copy):
    (copy / "config.json").unlink()
    (copy / digests.FILE).unlink()
    digests.seal(copy)
    with pytest.raises(CheckpointError, match="config.json: not in digests.json") as error:
        checkpoint.load_config(copy)
    assert "\n" not in str(error.value)


def test_what_is_no_checkpoint_is_never_replaced(tmp_path):
    """A folder of something else stays; an empty one and an older checkpoint give way."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "work.txt").write_text("hours")
    with pytest.raises(CheckpointError, match="runs exists and is no checkpoint"):
        save_weights(tmp_path / "runs", weights(), CONFIG)
    assert (tmp_path / "runs" / "work.txt").read_text() == "hours"
    (tmp_path / "empty").mkdir()
    for _ in range(2):
        save_weights(tmp_path / "empty", weights(), CONFIG)
    verify(tmp_path / "empty")


def test_nothing_is_saved_inside_of_a_checkpoint(copy):
    """A file more is damage to the outer one."""
    with pytest.raises(CheckpointError, match="inner is inside of the checkpoint .*another place"):
        save_weights(copy / "new" / "inner", weights(), CONFIG)
    verify(copy)


def test_a_folder_of_checkpoints_names_the_one_to_give(three):
    folder = three.directory
    (folder / "10").rename(folder / "5")
    shutil.copytree(folder / "20", folder / ".400.partial")
    with pytest.raises(CheckpointError, match=f"no whole checkpoint; give {folder}/30$"):
        verify(folder)


@pytest.mark.parametrize("keep, left", [(1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])])
def test_old_steps_are_pruned(tmp_path, keep, left):
    with Checkpoints(tmp_path, keep) as checkpoints:
        for step in range(1, 5):
            checkpoints.save(step, {"x": jnp.ones(3)}, CONFIG)
    assert checkpoints.steps() == left
    assert sorted(p.name for p in tmp_path.iterdir()) == [str(step) for step in left]


def test_saving_a_step_again_replaces_it(three):
    three.save(30, weights(31), CONFIG, {"batch": 31})
    tree, step, extra = three.restore(abstract(weights()))
    assert_equal(tree, weights(31))
    assert (step, extra, three.steps()) == (30, {"batch": 31}, [10, 20, 30])
    assert sorted(p.name for p in three.directory.iterdir()) == ["10", "20", "30"]


def test_an_interrupted_save_is_ignored_and_swept_away(three, caplog):
    whole = three.directory / "30"
    shutil.copytree(whole / "arrays", three.directory / ".40.partial" / "arrays")
    shutil.copytree(whole, three.directory / ".50.partial")
    assert Checkpoints(three.directory).steps() == [10, 20, 30]
    assert three.restore(abstract(weights()))[1] == 30 and not caplog.records
    three.save(31, weights(), CONFIG)
    three.wait()
    assert sorted(p.name for p in three.directory.iterdir()) == ["20", "30", "31"]


def test_killed_between_the_renames_the_replaced_one_comes_back(copy, tmp_path):
    copy.rename(tmp_path / ".tiny.replaced")
    with pytest.raises(CheckpointError, match="leaf x"):
        save_weights(copy, {"x": jnp.ones(0)}, CONFIG)
    save_weights(tmp_path / "other", weights(), CONFIG)
    checkpoint._tidy(copy)
    assert_equal(load_weights(copy)[0], weights())


@pytest.mark.parametrize("where", ["before", "in Orbax", "digests"])
def test_a_full_disk_leaves_the_steps_before(three, monkeypatch, where):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if where == "before":
            patch.setattr(shutil, "disk_usage", lambda _: (1, 1, 0))
        elif where == "in Orbax":
            import orbax.checkpoint as ocp

            close = ocp.StandardCheckpointer.close
            patch.setattr(ocp.StandardCheckpointer, "close", lambda c: (close(c), refuse()))
        else:
            patch.setattr(digests, "_digest", refuse)
        message = "MB free on the disk" if where == "before" else "no space left on the disk"
        with pytest.raises(CheckpointError, match=f"40: not saved.*intact.*{message}$"):
            three.save(40, weights(40), CONFIG)
            three.wait()
    assert sorted(p.name for p in three.directory.iterdir()) == ["10", "20", "30"]
    three.save(40, weights(40), CONFIG)
    assert three.restore(abstract(weights()))[1] == 40


def test_a_step_that_was_not_saved_does_not_keep_the_next_from_it(three, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(digests, "_digest", refuse)
        three.save(40, weights(40), CONFIG)
        assert three._pending is not None and three._pending.exception() is not None
    three.save(50, weights(50), CONFIG)
    three.wait()
    assert three.steps() == [20, 30, 50]
    assert [r.getMessage() for r in caplog.records if "40: not saved" in r.getMessage()]


LIMITED = """
import resource, signal, sys
import jax.numpy as jnp
from lsd_jax.checkpoint import CheckpointError, Checkpoints, save_weights
from lsd_jax.config import Config
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
tree = {f"w{i}": jnp.arange(100_000.0) for i in range(8)}
try:
    save_weights(sys.argv[1] + "/weights", tree, Config("x"))
except CheckpointError as error:
    print(error, file=sys.stderr)
try:
    with Checkpoints(sys.argv[1]) as steps:
        steps.save(1, tree, Config("x"))
except CheckpointError as error:
    print(error, file=sys.stderr)
"""


def test_a_write_that_fails_is_one_line(tmp_path):
    """Whatever the threads of Orbax have to say of it."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True, check=True
    )
    first, second = done.stderr.splitlines()
    assert re.search(r"weights: not saved, earlier ones intact: File too large$", first)
    assert re.search(r"1: not saved, earlier ones intact: File too large$", second)
    assert list(tmp_path.iterdir()) == []


def test_through_a_link_the_place_that_it_names_is_written(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    for name in ("weights", "steps"):
        (tmp_path / name).symlink_to(disk / name)
    for seed in (1, 2):
        save_weights(tmp_path / "weights", weights(seed), CONFIG)
        with Checkpoints(tmp_path / "steps") as checkpoints:
            checkpoints.save(seed, weights(seed), CONFIG)
    assert_equal(load_weights(disk / "weights")[0], weights(2))
    assert Checkpoints(disk / "steps").steps() == [1, 2]
    assert (tmp_path / "weights").is_symlink() and (tmp_path / "steps").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "steps", "weights"]
    assert sorted(p.name for p in disk.iterdir()) == ["steps", "weights"]


def test_what_is_saved_outlasts_a_power_loss(tmp_path, monkeypatch):
    flushed, sync = set(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda f: (sync(f), flushed.add(os.fstat(f).st_ino)))
    path = tmp_path / "tiny"
    save_weights(path, weights(), CONFIG)
    assert {p.stat().st_ino for p in (tmp_path, path, *path.rglob("*"))} == flushed


@pytest.mark.parametrize(
    "tree, extra, message",
    [
        ({"a": {"x": jnp.ones((0, 3))}}, None, "leaf a.x"),
        ({"a": 3}, None, "leaf a is int"),
        ({"a": jnp.ones(1)}, {"x": object()}, "not JSON serializable"),
    ],
)
def test_what_cannot_be_saved_is_refused_at_once(three, tree, extra, message):
    with pytest.raises(CheckpointError, match=message):
        three.save(40, tree, CONFIG, extra)
    assert sorted(p.name for p in three.directory.iterdir()) == ["10", "20", "30"]


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="keep=0"):
        Checkpoints(tmp_path, keep=0)
