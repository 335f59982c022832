"""Reads the rows of slots: whole row groups once, kept while they are still needed."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache

import pyarrow as pa

from dpo_core.data import files
from dpo_core.data.scan import RowGroup


class RowReader:
    """Row groups of a data set, the most recently used ones kept in memory up to ``max_bytes``."""

    def __init__(self, columns: Sequence[str], *, max_bytes: int) -> None:
        self._columns = tuple(columns)
        self._max_bytes = max_bytes
        # The footer of a file with many row groups takes longer to parse than one of its row groups to read.
        self._open = lru_cache(maxsize=16)(files.open_parquet)
        self._tables: OrderedDict[RowGroup, pa.Table] = OrderedDict()

    def row(self, group: RowGroup, row: int) -> pa.Table:
        """One row as a table of one row. Raises ValueError when the file cannot be read."""
        if group not in self._tables:
            parquet = self._open(group.file)
            self._tables[group] = files.read_row_group(parquet, group.file, group.index, self._columns)
            while len(self._tables) > 1 and sum(table.nbytes for table in self._tables.values()) > self._max_bytes:
                self._tables.popitem(last=False)
        self._tables.move_to_end(group)
        return self._tables[group].slice(row, 1)
