"""Files appear whole or not at all."""

import os
import threading

import pytest

from lsd_jax.files import check_writable, make_folder, replacing


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


def test_a_link_stays_one_and_what_it_names_is_replaced(tmp_path):
    path, link = tmp_path / "real" / "report.json", tmp_path / "link.json"
    path.parent.mkdir()
    link.symlink_to(path)  # which is not there yet
    for words in ("new", "newer"):
        check_writable(link)
        with replacing(link) as beside:
            beside.write_text(words)
        assert link.is_symlink() and path.read_text() == words
    assert list(path.parent.iterdir()) == [path]


def test_a_pipe_is_written_and_not_replaced(tmp_path):
    pipe, came = tmp_path / "pipe", []
    os.mkfifo(pipe)
    check_writable(pipe)
    reader = threading.Thread(target=lambda: came.append(pipe.read_text()), daemon=True)
    reader.start()
    with replacing(pipe) as place:
        assert place == pipe
        place.write_text("new")
    reader.join(10)
    assert came == ["new"] and pipe.is_fifo()


def test_a_device_is_written_and_not_replaced(tmp_path):
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    check_writable(link)
    with replacing(link) as place:
        place.write_text("new")
    assert link.is_symlink() and link.is_char_device()


def test_what_cannot_be_written_is_known_before_the_work(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")
    check_writable(path)
    assert path.read_text() == "old"
    make_folder(tmp_path / "plots" / "new")
    assert not any((tmp_path / "plots" / "new").iterdir())
    for place in (tmp_path, path / "in a file", tmp_path / "no folder" / "x", "/proc/x", ""):
        with pytest.raises(OSError) as error:
            check_writable(place)
        assert error.value.filename == str(place)
    with pytest.raises(OSError, match="report.json"):
        make_folder(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plots", "report.json"]
