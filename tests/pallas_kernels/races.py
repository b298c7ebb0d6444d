"""What Pallas's TPU interpreter found; the one place that knows where JAX keeps it."""

from jax._src.pallas.mosaic.interpret import interpret_pallas_call


def found() -> bool:
    """Whether the last kernel that was interpreted with `detect_races` raced."""
    return interpret_pallas_call.races.races_found
