"""Engines as actors of a Ray cluster on this machine: sessions, a killed actor, an intruder."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray has no wheel for this Python")


def test_actors_serve_are_replaced_and_know_their_secret():
    script = Path(__file__).with_name("ray_scenario.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "a caller who is no engine was hung up on" in done.stderr
