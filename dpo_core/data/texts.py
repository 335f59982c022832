"""Captions as the text encoders read them, stored once each beside a latent cache."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from dpo_core.data import files
from dpo_core.data.latents import LatentCache, write_parquet
from dpo_core.data.plan import Plan
from dpo_core.data.reader import RowReader
from dpo_core.data.scan import RowGroup
from dpo_core.data.section import DataSection
from dpo_core.data.writing import files_named
from dpo_core.families.base import DTYPES, Family, Precision
from dpo_core.families.captions import States

TEXT_SCHEMA = pa.schema(
    [
        ("caption", pa.string()),
        ("encoder", pa.string()),
        ("states", pa.list_(pa.binary())),
        ("shapes", pa.list_(pa.list_(pa.int32()))),
    ]
)
"""``encoder`` is the name under which a family remembers what it has encoded, ``states`` what that is."""
GROUP_ROWS = 16
"""Rows of a row group, which is what is read for one caption: 2 MB of CLIP's states in float16."""


def text_shard_name(index: int) -> str:
    return f"text-{index:05d}.parquet"


def text_files(folder: str | Path) -> list[str]:
    return files_named(folder, "text-")


def write_texts(path: str | Path, encoded: Iterable[tuple[str, str, States]], dtype: str) -> None:
    """Write (encoder, caption, states), the states as ``dtype``; the file is whole or absent.

    Raises ValueError for states that ``dtype`` cannot hold.
    """
    rows = [
        {
            "caption": caption,
            "encoder": encoder,
            "states": [_packed(state, dtype, caption) for state in states],
            "shapes": [list(state.shape) for state in states],
        }
        for encoder, caption, states in encoded
    ]
    groups = [rows[first : first + GROUP_ROWS] for first in range(0, len(rows), GROUP_ROWS)]
    write_parquet(path, TEXT_SCHEMA, groups)


def load_family(
    family: Family, device: torch.device, precision: Precision, plan: Plan, section: DataSection, *, encodes: bool
) -> Any:
    """The model of a run; its text encoders are left out where the cache has what they would say.

    ``encodes`` says that they are needed nevertheless, because they are trained. Raises ValueError as ``family.load``.
    """
    if plan.cache is None or not plan.cache.text or encodes:
        return family.load(device, precision)
    loaded = family.load(device, precision, "no_text")
    loaded.memory.stored = TextStore(section.paths[0], plan.cache, DTYPES[precision])
    return loaded


class TextStore:
    """The states of a cache's captions, in ``dtype``; what was read last stays in memory up to ``max_bytes``."""

    def __init__(
        self, folder: str | Path, cache: LatentCache, dtype: torch.dtype, *, max_bytes: int = 64 << 20
    ) -> None:
        self._folder = folder
        self._stored = np.dtype(cache.dtype).newbyteorder("<")
        self._dtype = dtype
        self._reader = RowReader(("states", "shapes"), max_bytes=max_bytes)
        self._places: dict[tuple[str, str], tuple[RowGroup, int]] = {}
        for file in text_files(folder):
            with files.open_parquet(file) as parquet:
                table = files.read_columns(parquet, file, ("encoder", "caption"))
            names = zip(table.column("encoder").to_pylist(), table.column("caption").to_pylist(), strict=True)
            self._places |= {
                name: (RowGroup(file, row // GROUP_ROWS, 0), row % GROUP_ROWS) for row, name in enumerate(names)
            }

    def find(self, encoder: str, caption: str) -> States:
        """What ``encoder`` made of ``caption``, on the CPU. Raises ValueError when the cache does not hold it."""
        place = self._places.get((encoder, caption))
        if place is None:
            raise ValueError(
                f"{self._folder} holds no text states of the caption {caption[:80]!r} for {encoder}; run the same "
                "`palate prepare` with cache.text=true into a new folder"
            )
        row = self._reader.row(*place)
        states, shapes = (row.column(name)[0] for name in ("states", "shapes"))
        return tuple(self._unpacked(state, shape) for state, shape in zip(states.values, shapes.as_py(), strict=True))

    def _unpacked(self, state: Any, shape: list[int]) -> torch.Tensor:
        values = np.frombuffer(state.as_buffer(), dtype=self._stored).reshape(shape)
        return torch.from_numpy(values.astype(np.float32)).to(self._dtype)


def _packed(state: torch.Tensor, dtype: str, caption: str) -> bytes:
    values = state.float().cpu().numpy().astype(np.dtype(dtype).newbyteorder("<"))
    if not np.isfinite(values).all():
        raise ValueError(f"the text states of {caption[:80]!r} do not fit into {dtype}; use cache.dtype=float32")
    return values.tobytes()
