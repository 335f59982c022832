"""Lists, dicts, text, numbers and arrays of floats out of a pickle, without running anything that it names.

A pickle is a program. Of the functions and classes that one may call, exactly those that numpy writes for its arrays
are known here, and they are ours: nothing of numpy or of the file is executed.
"""

import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOATS = ("f2", "f4", "f8")


class _Callable:
    """One of our functions as a pickle may call it; unlike a function it has no attribute that a pickle could set."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *values: Any) -> Any:
        return self._function(*values)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes what it calls")


class FloatArray:
    """What becomes of an array in the pickle."""

    values: NDArray[np.floating] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        if not isinstance(data, bytes | bytearray):
            raise pickle.UnpicklingError("an array does not hold plain numbers")
        self.values = _array(data, kind, shape, "F" if fortran else "C")


class _Kind:
    """The dtype of an array."""

    def __init__(self, name: str, order: str = "<") -> None:
        self.name, self.order = name, order

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"


def load(data: bytes) -> Any:
    """What ``data`` holds; arrays as `FloatArray`. Raises ValueError for everything that is not listed above."""
    try:
        return _Reader(io.BytesIO(data)).load()
    except Exception as error:  # a pickle can be broken in as many ways as a program
        raise ValueError(
            f"is no pickle of lists, dicts, text, numbers and arrays of floats: {type(error).__name__}: {error}"
        ) from error


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module.replace("numpy._core", "numpy.core"), name))
        if known is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed")
        return known

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside of itself")


def _array(data: Any, kind: Any, shape: Any, order: str) -> NDArray[np.floating]:
    if not isinstance(kind, _Kind) or kind.name not in FLOATS:
        raise pickle.UnpicklingError("an array is not of floats")
    values = np.frombuffer(bytes(data), dtype=kind.order + kind.name)
    if not isinstance(shape, tuple) or math.prod(shape) != len(values):
        raise pickle.UnpicklingError("an array is not of the shape that it claims")
    return values.reshape(shape, order="F" if order == "F" else "C").astype(kind.name)


def _reconstruct(kind: Any, shape: Any, code: Any) -> FloatArray:
    return FloatArray()


def _dtype(name: Any, *flags: Any) -> _Kind:
    if name not in FLOATS:
        raise pickle.UnpicklingError(f"an array is of {str(name)[:20]!r}; allowed are {', '.join(FLOATS)}")
    return _Kind(name)


def _frombuffer(data: Any, kind: Any, shape: Any, order: Any) -> FloatArray:
    array = FloatArray()
    array.values = _array(data, kind, shape, order)
    return array


def _scalar(kind: Any, data: Any) -> float:
    return float(_array(data, kind, (1,), "C")[0])


def _encode(text: Any, code: Any) -> bytes:
    """How old protocols write bytes."""
    if not isinstance(text, str) or code != "latin1":
        raise pickle.UnpicklingError("bytes are not written as numpy writes them")
    return text.encode("latin1")


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Callable(_reconstruct),
    ("numpy.core.multiarray", "scalar"): _Callable(_scalar),
    ("numpy.core.numeric", "_frombuffer"): _Callable(_frombuffer),
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _Callable(_dtype),
    ("_codecs", "encode"): _Callable(_encode),
    ("__builtin__", "bytes"): _Callable(lambda: b""),
}
