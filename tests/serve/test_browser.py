"""A gate that asks for the browser tests is never green without them."""

import browser
import pytest


@pytest.mark.parametrize(
    ("asked", "outcome"), [("required", pytest.fail.Exception), ("", pytest.skip.Exception)]
)
def test_what_a_machine_lacks_is_skipped_or_fails_as_asked(asked, outcome, monkeypatch):
    monkeypatch.setenv("LSD_BROWSER_TESTS", asked)
    with pytest.raises(outcome, match="no npm"):
        browser.absent("no npm")
