"""Which implementation of an op runs: the first that does not refuse, or the one asked for.

An op is its reference, a plain `jnp` function. Implementations are named beside it and imported
when they are first asked for, so an op costs nothing where its kernels cannot even be imported.
An implementation takes the op's own arguments and refuses by `NotImplementedError`, with the
reason and the remedy, before it computes anything.
"""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Generic, ParamSpec, TypeVar

import jax
from jax.sharding import Mesh

P = ParamSpec("P")
R = TypeVar("R")

AUTO, REFERENCE = "auto", "xla"


@dataclass(frozen=True)
class Backend:
    """An implementation of an op that lives elsewhere.

    `target` is `package.module:function`. One that is not `automatic`, a simulator for example,
    runs only where it is asked for by name. `prepare` names another function, that makes of the
    op's weights, once, what the implementation takes in their place. One that has a `gradient` may
    be differentiated.
    """

    name: str
    target: str
    automatic: bool = True
    prepare: str = ""
    gradient: bool = False

    def load(self, path: str = "") -> Callable:
        """The function, or another one. Raises NotImplementedError where its package does not
        import."""
        path = path or self.target
        try:
            return pkgutil.resolve_name(path)
        except ImportError as error:
            raise NotImplementedError(f"{path} does not import: {error}") from error


_wanted: ContextVar[str] = ContextVar("wanted", default=REFERENCE)
_chosen: ContextVar[dict[str, str] | None] = ContextVar("chosen", default=None)
_gradients: ContextVar[bool] = ContextVar("gradients", default=False)
_mesh: ContextVar[Mesh | None] = ContextVar("mesh", default=None)


@contextmanager
def using(
    backend: str, gradients: bool = False, mesh: Mesh | None = None
) -> Iterator[dict[str, str]]:
    """Ops traced inside run by `backend`, or by the first that does not refuse if it is `auto`.

    Outside of this, ops run their reference. Yields what was chosen so far, by the op's name. An op
    raises ValueError for a backend that it does not know, and NotImplementedError where the one
    asked for refuses. Where `gradients` are wanted, as in training, a backend without them is
    passed over, even one asked for: the op then runs its reference. Kernels are traced in a `mesh`,
    if given, over which they have to share their work; XLA shares out the rest by itself.
    """
    chosen: dict[str, str] = {}
    tokens = {
        _wanted: _wanted.set(backend),
        _chosen: _chosen.set(chosen),
        _gradients: _gradients.set(gradients),
        _mesh: _mesh.set(mesh),
    }
    try:
        yield chosen
    finally:
        for variable, token in tokens.items():
            variable.reset(token)


def gradients_wanted() -> bool:
    """Whether what is traced here is to be differentiated, as `using` was told."""
    return _gradients.get()


class Op(Generic[P, R]):
    """A reference and its implementations, in the order in which `auto` tries them.

    A `minor` op is one beside a greater: whoever computes that may leave it to the reference, be it
    that he does not know it, or that he refuses. The reference of a `fused` op calls others, and
    leaves it to them to say who computed them.
    """

    def __init__(
        self, reference: Callable[P, R], backends: tuple[Backend, ...], minor: bool, fused: bool
    ):
        self.minor, self.fused = minor, fused
        functools.update_wrapper(self, reference)
        self.name: str = getattr(reference, "__name__", "op")
        self.reference = reference
        self.backends = {backend.name: backend for backend in backends}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        wanted = _wanted.get()
        if self.minor and wanted not in (AUTO, *self.backends):
            wanted = REFERENCE
        if wanted in self.backends and not self._serves(wanted):
            wanted = REFERENCE
        name, out = wanted, None
        if wanted == AUTO:
            for name in self._automatic():
                try:
                    out = self.implementation(name)(*args, **kwargs)
                    break
                except NotImplementedError:
                    continue
        else:
            try:
                out = self.implementation(wanted)(*args, **kwargs)
            except NotImplementedError:
                if not self.minor:
                    raise
                name, out = REFERENCE, self.reference(*args, **kwargs)
        chosen = _chosen.get()
        if chosen is not None and not (self.fused and name == REFERENCE):
            chosen[self.name] = name
        return out  # pyright: ignore[reportReturnType]  # the reference never refuses

    def choose(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The backend that a call with these arguments (arrays or their shapes) would run by."""
        wanted = _wanted.get()
        if wanted != AUTO:
            return wanted
        *kernels, reference = self._automatic()
        for name in kernels:
            try:
                jax.eval_shape(self.implementation(name), *args, **kwargs)
            except NotImplementedError:
                continue
            return name
        return reference

    def preparing(self, name: str) -> Callable | None:
        """What prepares the weights for a backend, or None where it takes them as they are."""
        backend = self.backends.get(name)
        return backend.load(backend.prepare) if backend and backend.prepare else None

    def implementation(self, name: str) -> Callable[P, R]:
        """The implementation of that name. Raises ValueError for an unknown one, and
        NotImplementedError for one that cannot be imported here."""
        if name == REFERENCE:
            return self.reference
        if name not in self.backends:
            known = ", ".join((AUTO, REFERENCE, *self.backends))
            raise ValueError(f"{self.name} has no backend {name!r}; known: {known}")
        return _in_mesh(self.backends[name].load())

    def explain(self, *args: P.args, **kwargs: P.kwargs) -> dict[str, str]:
        """What each backend says to these arguments (arrays or their shapes), computing nothing:
        `chosen`, `could serve`, or why it refuses, in the order in which they are tried."""
        answers: dict[str, str] = {}
        taken = False
        for name in (*self.backends, REFERENCE):
            try:
                if not self._serves(name):
                    raise NotImplementedError("it has no gradient")
                jax.eval_shape(self.implementation(name), *args, **kwargs)
            except NotImplementedError as error:
                answers[name] = f"refuses: {error}"
            else:
                first = not taken and name in self._automatic()
                answers[name] = "chosen" if first else "could serve"
                taken |= first
        return answers

    def _automatic(self) -> tuple[str, ...]:
        automatic = (name for name, backend in self.backends.items() if backend.automatic)
        return (*filter(self._serves, automatic), REFERENCE)

    def _serves(self, name: str) -> bool:
        """Whether that backend gives what is wanted here: gradients, in training."""
        return name == REFERENCE or self.backends[name].gradient or not gradients_wanted()


def _in_mesh(kernel: Callable[P, R]) -> Callable[P, R]:
    mesh = _mesh.get()
    if mesh is None:
        return kernel

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return kernel(*args, **kwargs)

    return run


def op(
    *backends: Backend, minor: bool = False, fused: bool = False
) -> Callable[[Callable[P, R]], Op[P, R]]:
    """Makes an op of the reference that it decorates."""
    return lambda reference: Op(reference, backends, minor, fused)
