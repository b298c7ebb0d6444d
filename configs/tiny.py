"""128x128 at one pass a frame: the default on a CPU, 8.1 M parameters.

    lsd stream clip.mp4 --prompt "make it night" -o night.mp4
    lsd train configs/tiny.py --stage forcing

`recipes/tiny.sh` trains the shipped checkpoint; docs/recipes.md says what to expect.
"""

from lsd_jax.config import Config, HistoryConfig, ModelConfig, TrainConfig

config = Config(
    name="tiny",
    model=ModelConfig(memory=2),
    train=TrainConfig(
        batch=8,
        frames=4,
        steps=600,
        learning_rate=1e-3,
        warmup=20,
        ema=0.99,
        pure_noise=0.85,  # at one pass a stream starts from pure noise always
        prompt_drop=0.0,
    ),
    history=HistoryConfig(corrupted=0.5, rolled_out=0.25),
)
