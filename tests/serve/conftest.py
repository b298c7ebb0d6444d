"""A picture and a browser for the tests of the server."""

import numpy as np
import pytest
from browser import absent, find


@pytest.fixture(scope="session")
def chromium():
    """Where Chromium is. A test that needs one asks for it by `browser.needed`."""
    found = find()
    if found is None:
        absent("no Chromium: apt-get install chromium, playwright install chromium, LSD_CHROMIUM")
    return found


@pytest.fixture
def smooth():
    """A picture that JPEG keeps nearly as it is."""
    ramp = np.linspace(0, 255, 64)[None, :, None] * np.ones((48, 1, 3))
    return ramp.astype(np.uint8)
