"""Eight virtual CPU devices, strict dtypes, checked shapes, and one small model for all."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
_flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{_flags} --xla_force_host_platform_device_count=8".strip()

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jaxtyping.install_import_hook("lsd_jax", "beartype.beartype")


def _unchecked(cls, *args, _register=jax.tree_util.register_dataclass, **options):
    """Pytrees travel through JAX with shapes, shardings or one axis more or less in place of
    their arrays, so the hook checks functions, but not how these classes are filled."""
    if cls.__module__.startswith("lsd_jax."):
        cls.__no_type_check__ = True
    return _register(cls, *args, **options)


jax.tree_util.register_dataclass = _unchecked

from lsd_jax.config import Config, ModelConfig, TrainConfig  # noqa: E402


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
