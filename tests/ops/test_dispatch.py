"""The choice of an implementation: first that does not refuse, reasons, forced ones."""

import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from lsd_jax.ops import dispatch
from lsd_jax.ops.dispatch import Backend, op


def even_only(x):
    if x.shape[0] % 2:
        raise NotImplementedError(f"length {x.shape[0]} is odd; pad it to {x.shape[0] + 1}")
    return x * 2 + 100


def anything(x):
    return x * 2 + 200


@pytest.fixture
def double(monkeypatch):
    module = types.ModuleType("kernels_of_a_test")
    module.even_only, module.anything = even_only, anything
    monkeypatch.setitem(sys.modules, module.__name__, module)

    @op(
        Backend("absent", "no_such_package.kernel:double"),
        Backend("even", "kernels_of_a_test:even_only"),
        Backend("simulated", "kernels_of_a_test:anything", automatic=False),
    )
    def double(x):
        return x * 2

    return double


def test_outside_of_a_choice_the_reference_runs(double):
    assert double(jnp.ones(2))[0] == 2


@pytest.mark.parametrize(("length", "name", "value"), [(2, "even", 102), (3, "xla", 2)])
def test_the_first_that_does_not_refuse_wins(double, length, name, value):
    with dispatch.using("auto") as chosen:
        assert double(jnp.ones(length))[0] == value
    assert chosen == {"double": name}
    assert double(jnp.ones(length))[0] == 2  # the choice has ended


def test_a_minor_op_is_left_to_its_reference_by_who_does_not_know_it_or_refuses(double):
    minor = op(*double.backends.values(), minor=True)(double.reference)
    with dispatch.using("nki") as chosen:
        assert minor(jnp.ones(2))[0] == 2
        with pytest.raises(ValueError, match="no backend 'nki'"):
            double(jnp.ones(2))
    assert chosen == {"double": "xla"}
    with dispatch.using("even") as chosen:
        assert minor(jnp.ones(3))[0] == 2 and chosen == {"double": "xla"}
        assert minor(jnp.ones(2))[0] == 102 and chosen == {"double": "even"}


def test_a_forced_backend_runs_or_raises(double):
    with dispatch.using("simulated") as chosen:
        assert jax.jit(lambda x: double(x))(jnp.ones(3))[0] == 202
    assert chosen == {"double": "simulated"}
    with dispatch.using("even"), pytest.raises(NotImplementedError, match="odd; pad it to 4"):
        double(jnp.ones(3))
    with dispatch.using("absent"), pytest.raises(NotImplementedError, match="does not import"):
        double(jnp.ones(2))
    with dispatch.using("tpu"), pytest.raises(ValueError, match="known: auto, xla, absent, even"):
        double(jnp.ones(2))


def test_explain_gives_the_choice_and_the_reasons(double):
    answers = double.explain(jax.ShapeDtypeStruct((3,), jnp.float32))
    assert list(answers) == ["absent", "even", "simulated", "xla"]
    assert "no_such_package" in answers["absent"]
    assert answers["even"] == "refuses: length 3 is odd; pad it to 4"
    assert answers["simulated"] == "could serve" and answers["xla"] == "chosen"
    assert double.explain(jnp.ones(2))["even"] == "chosen"


def test_where_gradients_are_wanted_who_has_none_is_passed_over(double):
    backends = (
        Backend("even", "kernels_of_a_test:even_only"),
        Backend("trained", "kernels_of_a_test:anything", gradient=True),
        Backend("strict", "kernels_of_a_test:even_only", automatic=False, gradient=True),
    )
    trainable = op(*backends)(double.reference)
    with dispatch.using("auto", gradients=True) as chosen:
        assert trainable(jnp.ones(2))[0] == 202 and chosen == {"double": "trained"}
        answers = trainable.explain(jnp.ones(2))
        assert trainable.choose(jnp.ones(2)) == "trained"
    assert answers["even"] == "refuses: it has no gradient" and answers["trained"] == "chosen"
    with dispatch.using("even", gradients=True) as chosen:
        assert trainable(jnp.ones(2))[0] == 2 and chosen == {"double": "xla"}
    with dispatch.using("strict", gradients=True):
        with pytest.raises(NotImplementedError, match="odd; pad it to 4"):
            trainable(jnp.ones(3))
    with dispatch.using("auto"):
        assert trainable(jnp.ones(2))[0] == 102


def test_kernels_alone_are_traced_in_the_mesh(double, monkeypatch):
    seen = []

    def sees(x):
        seen.append(jax.sharding.get_abstract_mesh().shape.get("data", 1))
        return x

    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    monkeypatch.setattr(sys.modules["kernels_of_a_test"], "anything", sees)
    looking = op(Backend("it", "kernels_of_a_test:anything"))(sees)
    for backend in ("it", "xla"):
        with dispatch.using(backend, mesh=mesh):
            looking(jnp.ones(1))
    assert seen == [4, 1]


def test_the_seam_imports_no_kernel():
    code = (
        "import sys, lsd_jax.stream; "
        "sys.exit(any(m.startswith(('pallas_kernels', 'nki_kernels')) for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
