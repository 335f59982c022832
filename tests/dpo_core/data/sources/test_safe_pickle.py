import contextlib
import datetime
import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_core.data.sources import safe_pickle
from dpo_core.data.sources.safe_pickle import FloatArray


def values(found: Any) -> np.ndarray:
    assert isinstance(found, FloatArray)
    assert found.values is not None
    return found.values


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ["<f2", "<f4", "<f8", ">f4"])
def test_arrays_of_floats_come_out_as_they_went_in(protocol: int, kind: str):
    grid = np.random.default_rng(0).standard_normal((3, 5)).astype(kind)
    for array in (grid, np.asfortranarray(grid), grid[:, ::2], grid[:0]):
        found = values(safe_pickle.load(pickle.dumps(array, protocol)))
        assert np.array_equal(found, array)
        assert found.shape == array.shape


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_the_file_of_patchdpo_holds_comes_out(protocol: int):
    data = [
        {"target_map": np.ones((2, 2), np.float32), "name": "ä", "k": 3, "x": 0.5, "none": None, "y": np.float32(2)}
    ]
    found = safe_pickle.load(pickle.dumps(data, protocol))
    assert np.array_equal(values(found[0].pop("target_map")), np.ones((2, 2)))
    assert found == [{"name": "ä", "k": 3, "x": 0.5, "none": None, "y": 2.0}]


def test_files_of_old_and_new_numpy_are_both_read():
    data = pickle.dumps(np.arange(3.0), 2)
    assert b"numpy._core" in data
    assert np.array_equal(values(safe_pickle.load(data.replace(b"numpy._core", b"numpy.core"))), np.arange(3.0))


class Runs:
    def __init__(self, function: Any, *words: Any) -> None:
        self.answer = function, words

    def __reduce__(self):
        return self.answer


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_that_a_pickle_asks_for_is_run(tmp_path: Path, protocol: int):
    canary = tmp_path / "canary"
    attacks = [
        Runs(os.system, f"touch {canary}"),
        Runs(eval, f"open({str(canary)!r}, 'w')"),
        Runs(open, str(canary), "w"),
        Runs(np.save, str(canary), 1),
        Runs(getattr, np, "save"),
        Runs(pickle.loads, pickle.dumps(Runs(os.system, f"touch {canary}"))),
        [{"target_map": Runs(os.system, f"touch {canary}")}],
    ]
    for attack in attacks:
        try:
            data = pickle.dumps(attack, protocol)
        except (TypeError, pickle.PicklingError):
            continue
        with pytest.raises(ValueError, match="is no pickle of lists, dicts"):
            safe_pickle.load(data)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value",
    [
        np.array(["a"]), np.array([1, 2]), np.array([None]), np.array([object]), np.zeros(2, "f4,f4"),
        np.array([1j]), np.datetime64("2026-01-01"), datetime.date(2026, 1, 1), random.Random(0), int, np.float64,
        Path("/etc"), {1, 2}.__class__,
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_anything_else_is_refused(value: Any):
    with pytest.raises(ValueError, match="is no pickle of lists, dicts"):
        safe_pickle.load(pickle.dumps(value))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"no pickle", b"\x80\x05",
        b"cnumpy\ndtype\n(dS'__defaults__'\nI1\nsb.", b"cnumpy\nndarray\n(dS'a'\nI1\nsb.",
        b"cdpo_core.data.sources.safe_pickle\n_KNOWN\n.", b"\x82\x01.", b"Ppersistent\n.", b"cnumpy\ndtype.mro\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x11dtype.__subclasses__\x93.", b"(" * 10_000, b"\x96" + b"\xff" * 8,
        pickle.dumps(np.zeros((4, 4)))[:-40],
    ],
)  # fmt: skip
def test_broken_and_crafted_files_are_refused_in_one_way(data: bytes):
    with pytest.raises(ValueError, match="is no pickle of lists, dicts"):
        safe_pickle.load(data)
    assert np.array_equal(values(safe_pickle.load(pickle.dumps(np.ones(3)))), np.ones(3))


def test_an_array_that_claims_another_shape_is_refused():
    data = pickle.dumps(np.zeros((2, 3)), 2)
    claimed = data.replace(b"K\x02K\x03", b"K\xffK\xff")
    assert claimed != data
    with pytest.raises(ValueError, match="not of the shape"):
        safe_pickle.load(claimed)


@settings(max_examples=300, deadline=None)
@given(
    place=st.integers(0, 400), byte=st.integers(0, 255), cut=st.integers(0, 60),
    protocol=st.integers(0, pickle.HIGHEST_PROTOCOL),
)  # fmt: skip
def test_a_damaged_file_gives_values_or_a_value_error(place: int, byte: int, cut: int, protocol: int):
    data = bytearray(pickle.dumps([{"target_map": np.ones((2, 2)), "k": [1, 2.5, "text"]}], protocol))
    data[place % len(data)] = byte
    with contextlib.suppress(ValueError):
        safe_pickle.load(bytes(data[: len(data) - cut // 10]))
