"""`lsd train` around the loop: its options, and what an interruption is."""

import pytest

from lsd_jax.cli.main import main
from lsd_jax.train import loop


@pytest.fixture
def command(small_checkpoint, tmp_path):
    return ["train", small_checkpoint, "--out", str(tmp_path / "run")]


@pytest.mark.parametrize("minutes", ["0", "-1", "nan"])
def test_a_time_that_is_none_is_refused(command, minutes, capsys):
    assert main([*command, "--minutes", minutes]) == 2
    assert f"--minutes {float(minutes)}: give more than 0" in capsys.readouterr().err


def test_an_unknown_backend_leaves_no_folder(command, tmp_path, capsys):
    assert main([*command, "--set", "train.backend=zzz"]) == 2
    assert "unknown train.backend=zzz; known: auto" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_the_stage_is_kept_with_the_run(command, monkeypatch):
    given = {}
    monkeypatch.setattr(loop, "train", lambda *_, **settings: given.update(settings) or 20_000)
    assert main([*command, "--stage", "history"]) == 0
    assert given["stage"] == "history"


@pytest.mark.parametrize(("minutes", "code"), [("1e-9", 0), ("5", 2)])
def test_the_end_of_its_time_is_no_interruption(command, minutes, code, monkeypatch, capsys):
    monkeypatch.setattr(loop, "train", lambda *_, **__: 3)
    assert main([*command, "--minutes", minutes]) == code
    said = capsys.readouterr()
    assert "3 steps are kept in" in said.out + said.err
    assert ("goes on from there" in said.err) == bool(code)
