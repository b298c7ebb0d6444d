"""The shape at which kernels are compared: 256 tokens, four layers of width 512, heads of 128.

    lsd bench stack --chip v6e --config reference

Not meant to be trained.
"""

from lsd_jax.config import Config, ModelConfig, StreamConfig

config = Config(
    name="reference",
    model=ModelConfig(
        height=256,
        width=256,
        dim=512,
        layers=4,
        heads=4,
        mlp=2048,
        window=4,
        prompt_tokens=64,
        reference_tokens=64,
    ),
    stream=StreamConfig(compute_dtype="bfloat16"),
)
