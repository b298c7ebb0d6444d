"""A picture for the tests of the server."""

import numpy as np
import pytest


@pytest.fixture
def smooth():
    """A picture that JPEG keeps nearly as it is."""
    ramp = np.linspace(0, 255, 64)[None, :, None] * np.ones((48, 1, 3))
    return ramp.astype(np.uint8)
