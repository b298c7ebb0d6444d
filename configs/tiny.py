"""128x128 at one pass a frame: the default on a CPU, about 8 M parameters.

lsd stream clip.mp4 --prompt "make it night" -o night.mp4
lsd train configs/tiny.py --stage forcing
"""

from lsd_jax.config import Config

config = Config(name="tiny")
