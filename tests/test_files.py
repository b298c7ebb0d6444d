"""Files appear whole or not at all."""

import pytest

from lsd_jax.files import replacing


def test_a_file_appears_when_the_block_has_ended(tmp_path):
    path = tmp_path / "report.json"
    with replacing(path) as beside:
        beside.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_keeps_what_was_there(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), replacing(str(path)) as beside:
        beside.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
