"""Eight virtual CPU devices, quick compiles, strict dtypes, checked shapes, and one small model for
all."""

import atexit
import os
import shutil
import tempfile
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

QUICK = "--xla_backend_optimization_level=0"
"""Most of what tests cost is compiling, and LLVM's optimisations were three quarters of that."""
if version("jaxlib").startswith("0.10."):  # later ones end at a flag that they do not know
    QUICK += " --xla_cpu_use_fusion_emitters=false"

os.environ["JAX_PLATFORMS"] = "cpu"
_flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{_flags} {QUICK} --xla_force_host_platform_device_count=8".strip()
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # what one process has compiled serves all
    _shared = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp()
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, _shared, ignore_errors=True)

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
ROOT = Path(__file__).parent.parent
SHAPED = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "lsd_jax").rglob("*.py")
    if "from jaxtyping" in path.read_text()
]
"""Modules that name shapes. A check costs tens of microseconds, which planning and searching call
for a million times, with numbers alone."""
jaxtyping.install_import_hook(SHAPED, "beartype.beartype")


def _unchecked(cls, *args, _register=jax.tree_util.register_dataclass, **options):
    """Pytrees travel through JAX with shapes, shardings or one axis more or less in place of
    their arrays, so the hook checks functions, but not how these classes are filled."""
    if cls.__module__.startswith("lsd_jax."):
        cls.__no_type_check__ = True
    return _register(cls, *args, **options)


jax.tree_util.register_dataclass = _unchecked

from lsd_jax.config import Config, ModelConfig, TrainConfig  # noqa: E402

LONGEST = (
    "test_rollouts.py", "test_megakernel.py", "test_step.py", "test_tensor_parallel.py",
    "test_shortcut.py", "test_cores.py", "test_rendered.py", "test_nki_stack.py",
    "test_stream.py", "test_loop.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Files of most of a minute first: one that a worker begins last leaves the other idle."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def small_config() -> Config:
    """A model that compiles in seconds: 16 tokens, two layers, two heads."""
    return Config(
        "small-test",
        ModelConfig(
            height=32, width=32, patch=8, dim=32, layers=2, heads=2, mlp=64, window=3, sinks=1,
            prompt_tokens=4, reference_tokens=4, text_dim=32, text_layers=1, detail_dim=8,
        ),
        train=TrainConfig(
            batch=8, frames=3, steps=6, warmup=2, checkpoint_every=3, sample_every=100,
            log_every=1,
        ),
    )  # fmt: skip


@pytest.fixture(scope="session")
def small_model(small_config):
    """Its weights, untrained."""
    from lsd_jax.model import Denoiser

    return jax.jit(lambda key: Denoiser(small_config.model, key))(jax.random.key(0))


@pytest.fixture(scope="session")
def small_params(small_model):
    """Its weights as nested dicts, as training holds them."""
    from flax import nnx

    return nnx.to_pure_dict(nnx.state(small_model, nnx.Param))


@pytest.fixture(scope="session")
def small_checkpoint(small_config, small_params, tmp_path_factory):
    """The path of a checkpoint with them, whose config has no settings but the model's."""
    from lsd_jax.checkpoint import save_weights

    path = tmp_path_factory.mktemp("model") / "small"
    save_weights(path, small_params, Config(name="small", model=small_config.model))
    return str(path)


@pytest.fixture(scope="session")
def small_batch(small_config):
    """A batch of gradients in motion, to be turned into their negatives."""
    from lsd_jax.data.batch import Batch
    from lsd_jax.types import Conditioning

    model, train = small_config.model, small_config.train
    rng = np.random.default_rng(0)
    shape = (train.batch, train.frames, model.height, model.width)
    ramp = np.linspace(0, 200, model.width) + rng.integers(0, 50, (*shape[:2], 1, 1))
    source = np.broadcast_to(ramp[..., None], (*shape, 3)).astype(np.uint8)
    prompt = np.zeros((train.batch, model.prompt_bytes), np.uint8)
    prompt[:, :8] = np.frombuffer(b"negative", np.uint8)
    batch = Batch(
        source=source,
        target=255 - source,
        controls=np.full((*shape, 1), 255, np.uint8),
        condition=Conditioning(prompt, source[:, 0], np.arange(train.batch) % 2 == 0),
    )
    return jax.tree.map(jax.numpy.asarray, batch)


@pytest.fixture(scope="session")
def shared_step():
    """`make_step`, once for all tests of a file that ask for the same step."""
    from lsd_jax.train.step import make_step

    return lru_cache(make_step)
