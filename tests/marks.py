"""Marks of single parameters."""

from functools import partial

import pytest

slow = partial(pytest.param, marks=pytest.mark.slow)
"""Parameters of a test for `make test-slow`: others prove nearly the same each time."""
