"""Latents per second and core out of parquet: our plain binary columns beside columns of tensors and of lists.

python -m tests.benchmarks.cache_reading [--pairs 128] [--repeats 5]

Each file holds the same posteriors (SD1.5 at 512 pixels: 131,072 bytes per pair in float16), in row groups of 16, and
is read pair by pair into float32 arrays. One thread, CPU time, the best of some rounds, files in the page cache; only
the ratios mean something elsewhere.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SHAPE = (2, 2, 4, 64, 64)
GROUP = 16


def binary(values: np.ndarray) -> pa.Array:
    return pa.array([row.tobytes() for row in values], type=pa.binary())


def tensor(values: np.ndarray) -> pa.Array:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(values)


def lists(values: np.ndarray) -> pa.Array:
    return pa.array(list(values.reshape(len(values), -1)), type=pa.list_(pa.float16()))


def from_binary(group: pa.ChunkedArray) -> Iterator[np.ndarray]:
    for row in group:
        yield np.frombuffer(row.as_buffer(), dtype="<f2").astype(np.float32).reshape(SHAPE)


def from_tensor(group: pa.ChunkedArray) -> Iterator[np.ndarray]:
    for chunk in group.chunks:
        yield from chunk.to_numpy_ndarray().astype(np.float32)


def from_lists(group: pa.ChunkedArray) -> Iterator[np.ndarray]:
    for row in group:
        yield row.values.to_numpy().astype(np.float32).reshape(SHAPE)


def from_python_lists(group: pa.ChunkedArray) -> Iterator[np.ndarray]:
    for row in group.to_pylist():
        yield np.array(row, dtype=np.float32).reshape(SHAPE)


PLAIN = {"compression": "none", "use_dictionary": False, "write_statistics": False}
WAYS: dict[str, tuple[Callable, Callable, dict]] = {
    "binary, plain (ours)": (binary, from_binary, PLAIN),
    "binary, pyarrow's defaults": (binary, from_binary, {}),
    "tensor extension, plain": (tensor, from_tensor, PLAIN),
    "tensor extension, pyarrow's defaults": (tensor, from_tensor, {}),
    "list of numbers, pyarrow's defaults": (lists, from_lists, {}),
    "list of numbers, as Python objects": (lists, from_python_lists, {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    pa.set_cpu_count(1)
    values = np.random.default_rng(0).normal(size=(arguments.pairs, *SHAPE)).astype(np.float16)
    ours = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for name, (pack, unpack, options) in WAYS.items():
            file = Path(folder) / "pairs.parquet"
            pq.write_table(pa.table({"posterior": pack(values)}), file, row_group_size=GROUP, **options)

            def read(file: Path = file, unpack: Callable = unpack) -> float:
                with pq.ParquetFile(file) as parquet:
                    groups = (parquet.read_row_group(i, use_threads=False) for i in range(parquet.num_row_groups))
                    return sum(float(row[0, 0, 0, 0, 0]) for group in groups for row in unpack(group["posterior"]))

            seconds = []
            for _ in range(arguments.repeats):
                start = time.process_time()
                read()
                seconds.append(time.process_time() - start)
            rate = arguments.pairs / min(seconds)
            ours = ours or rate
            size = os.path.getsize(file) / arguments.pairs
            print(f"{name:38} {size:9,.0f} bytes a pair {rate:8,.0f} pairs/s   1 / {ours / rate:.1f}", flush=True)


if __name__ == "__main__":
    main()
