"""A case whose compilation ends as asked, for the tests of who is told what."""

import os
import signal
import sys

import jax
import jax.numpy as jnp


def case(end: str):
    """Ends by a signal or an exception; an abort is the profiler's, so only where that is on."""
    if end == "ImportError":
        raise ImportError("gone")
    if end != "SIGABRT" or "profile" in os.environ["LIBTPU_INIT_ARGS"]:
        print(
            "F1231 23:59:59.000001    4321 profiler.cc:1] Check failed: known",
            file=sys.stderr,
            flush=True,
        )
        os.kill(os.getpid(), signal.Signals[end])
    return jnp.sin, (jax.ShapeDtypeStruct((8, 128), jnp.dtype("float32")),), ()
