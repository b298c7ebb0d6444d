"""Live-stream diffusion in JAX: a causal video model that transforms a stream frame by frame."""

__version__ = "0.1.0"
