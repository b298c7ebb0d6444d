"""What Pallas's TPU interpreter found; the one place that knows where JAX keeps it."""

from jax._src.pallas.mosaic.interpret import interpret_pallas_call


def found(failure: Exception | None = None) -> bool:
    """Whether the last kernel that was interpreted with `detect_races` raced; JAX 0.12 ends it with
    the `failure` that it met, the versions before go on."""
    if failure:
        return "RACE DETECTED" in str(failure)
    state = interpret_pallas_call.races
    return bool(state and state.races_found)


def noticed(failure: Exception | None) -> dict:
    """What scripts of faults print of a kernel that was interpreted: whether it raced, and how it
    failed."""
    return {"raced": found(failure), "error": failure and str(failure)[:200]}
