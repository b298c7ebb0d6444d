"""128x128 at one pass a frame: the default on a CPU, 8.0 M parameters.

    lsd stream clip.mp4 --prompt "make it night" -o night.mp4
    lsd train configs/tiny.py --stage forcing

`recipes/tiny.sh` trains the shipped checkpoint; docs/recipes.md says what to expect.
"""

from lsd_jax.config import Config, TrainConfig

config = Config(
    name="tiny",
    train=TrainConfig(
        batch=6,
        frames=4,
        steps=800,
        learning_rate=1.5e-3,
        ema=0.998,
        pure_noise=0.7,
        prompt_drop=0.02,
    ),
)
