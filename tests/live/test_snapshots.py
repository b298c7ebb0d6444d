"""A snapshot from a stranger is read whole or refused in one line, whatever its bytes are."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsd_jax.live.slot import _read_leaves

LIMIT = 1 << 24  # bytes, more than there are below


@pytest.fixture(scope="module")
def members():
    """The files of a snapshot."""
    leaves = {"state/kv.k": np.ones((2, 64, 8), np.float32), "state/frame": np.int32(3)}
    leaves |= {"mask": np.full((32, 32), 255, np.uint8), "seed": np.int64(4)}
    file = io.BytesIO()
    np.savez(file, prompt=np.frombuffer(b"night", np.uint8), **leaves)
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archived(members, method=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def headed(*shape):
    """An array's header without its array."""
    file = io.BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)
    return file.getvalue()


def is_refused(snapshot):
    with pytest.raises(ValueError, match="no snapshot of this model, or it is damaged"):
        _read_leaves(snapshot, LIMIT)
    return True


@pytest.mark.parametrize(
    "data", [b"", b"hello", headed(10**14), headed(10**30), headed(-1), headed(3), headed(2**62, 4)]
)
@pytest.mark.parametrize("name", ["prompt.npy", "state/frame.npy"])
def test_a_snapshot_with_a_file_that_is_no_array_is_damaged(members, name, data):
    assert is_refused(archived(members | {name: data}))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_snapshot_that_does_not_unpack_is_damaged(members, method):
    whole = archived(members, method)
    assert _read_leaves(whole, LIMIT).keys() == {name.removesuffix(".npy") for name in members}
    broken = bytearray(whole)
    broken[60:120] = bytes(60)
    assert is_refused(bytes(broken))


def test_a_snapshot_of_a_larger_model_is_refused(members):
    with pytest.raises(ValueError, match="no snapshot of this model"):
        _read_leaves(archived(members), limit=1000)


@given(place=st.integers(0, 1 << 20), byte=st.integers(0, 255), end=st.integers(0, 1 << 20))
@settings(max_examples=100, deadline=None)
def test_a_snapshot_that_was_changed_anywhere_is_whole_or_damaged(members, place, byte, end):
    changed = bytearray(archived(members))
    changed[-1 - place % len(changed)] = byte  # most kinds of trouble are in the directory, behind
    for found in (bytes(changed), bytes(changed[: end % len(changed)])):
        try:
            leaves = _read_leaves(found, LIMIT)
        except ValueError:
            continue
        assert all(isinstance(leaf, np.ndarray) for leaf in leaves.values())
