"""The work on one shard of a job that makes shards: read in a task, make and write in a worker."""

import json
import pickle
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from dpo_core.data.files import open_parquet
from dpo_core.data.quarantine import Quarantined, Reason, RowRejected
from dpo_core.data.writing import writing
from ray_jobs.cluster import ClusterSection, check_fits, gpus_each, start_ray
from ray_jobs.shards.source import Part, Row, read_part, with_read

if TYPE_CHECKING:
    import ray.data

SUMMARY_KEY = b"palate.shard"


@dataclass(frozen=True)
class Outcome:
    """What became of a row: rows with the recipe's columns, or a rejection, or left out on purpose."""

    rows: tuple[dict[str, Any], ...] = ()
    rejected: RowRejected | None = None
    left_out: str = ""
    counts: Mapping[str, float] = field(default_factory=dict)
    """Added up over the job: calls, tokens."""

    @classmethod
    def made(cls, *rows: dict[str, Any], **counts: float) -> "Outcome":
        """The row became ``rows``; each has values for the recipe's columns (null where missing)."""
        return cls(rows=rows, counts=counts)


Maker = Callable[[list[Row]], list[Outcome]]
"""What a worker does with the rows of a shard; one outcome for each, in order."""


class Recipe(ABC):
    """How rows become rows. Pickled to every worker, so it is small and defined in a module."""

    columns: tuple[pa.Field, ...] = ()
    """Columns that are written; all others of the source are carried over."""
    reads: tuple[str, ...] = ()
    """Columns of the source that `Row.values` holds."""
    per_image: bool = False
    """Whether captions are read from caption_0 and caption_1."""
    uses_gpu: bool = True
    """Whether a worker may take a GPU."""

    @abstractmethod
    def load(self) -> Maker:
        """Called once in each worker: load the model, open the client. Raises ValueError."""

    def read(self, row: Row) -> Any:
        """Called in a reading task, without the worker's model: decode images. Becomes ``row.read``.

        Raises RowRejected for a row that cannot be used.
        """
        return row.read

    def report(self, files: list[str]) -> dict[str, Any]:
        """What the whole set shows, from its shards; kept in ``job.json``."""
        del files
        return {}


@dataclass(frozen=True)
class Task:
    """One shard to write."""

    index: int
    path: str
    parts: list[Part]


@dataclass(frozen=True)
class Summary:
    """What a shard says of itself, beside its rows."""

    made: int
    rows: int
    """Rows that were read for it."""
    quarantined: list[Quarantined]
    left_out: dict[str, int]
    counts: dict[str, float]


Read = list[tuple[pa.Table, list[Row | RowRejected]]]
"""For each part its rows as a table, and each row as it was read or why it cannot be used."""


def read_task(task: Task, recipe: Recipe, carried: pa.Schema) -> Read:
    """Read the rows of a shard. Raises ValueError when a file cannot be read."""
    parts: Read = []
    for part in task.parts:
        table, rows = read_part(part, carried, per_image=recipe.per_image, reads=recipe.reads)
        parts.append((table, [_read(recipe, row) for row in rows]))
    return parts


def _read(recipe: Recipe, row: Row | RowRejected) -> Row | RowRejected:
    if isinstance(row, RowRejected):
        return row
    try:
        return with_read(row, recipe.read(row))
    except RowRejected as rejected:
        return rejected


class ShardMaker:
    """Holds what the recipe loads; makes shards and writes them."""

    def __init__(self, recipe: Recipe, carried: pa.Schema) -> None:
        self._recipe = recipe
        self._columns = recipe.columns
        self._schema = output_schema(carried, recipe.columns)
        self._make: Maker | None = None

    def write(self, task: Task, read: Read) -> None:
        """Write the shard; the file is whole or absent. Raises ValueError as the recipe does."""
        # Not in __init__: what goes wrong in the constructor of an actor reaches the user as a failure of Ray.
        self._make = self._make or self._recipe.load()
        usable = [row for _, rows in read for row in rows if isinstance(row, Row)]
        made = self._make(usable) if usable else []
        assert len(made) == len(usable), "one outcome for each row"
        outcomes = iter(made)
        groups = [self._part(outcomes, part, table, rows) for part, (table, rows) in zip(task.parts, read, strict=True)]
        quarantined = [record for _, summary in groups for record in summary.quarantined]
        left_out, counts = Counter[str](), Counter[str]()
        for _, summary in groups:
            left_out.update(summary.left_out)
            counts.update(summary.counts)
        read_rows = sum(summary.rows for _, summary in groups)
        summary = Summary(sum(len(table) for table, _ in groups), read_rows, quarantined, dict(left_out), dict(counts))
        with writing(task.path) as local, pq.ParquetWriter(local, self._schema, use_dictionary=False) as writer:
            for table, _ in groups:
                writer.write_table(table, row_group_size=max(len(table), 1))
            writer.add_key_value_metadata({SUMMARY_KEY: json.dumps(asdict(summary))})

    def _part(
        self, outcomes: Iterator[Outcome], part: Part, table: pa.Table, rows: list[Row | RowRejected]
    ) -> tuple[pa.Table, Summary]:
        taken, values, quarantined = list[int](), list[dict[str, Any]](), list[Quarantined]()
        left_out, counts = Counter[str](), Counter[str]()
        for index, row in enumerate(rows):
            outcome = next(outcomes) if isinstance(row, Row) else Outcome(rejected=row)
            counts.update(outcome.counts)
            taken += [index] * len(outcome.rows)
            values += outcome.rows
            if outcome.rejected is not None:
                file, place = part.origin(index)
                reason = outcome.rejected
                quarantined.append(Quarantined(part.ids[index], file, place, reason.reason, reason.detail))
            elif not outcome.rows:
                assert outcome.left_out, "a row that makes nothing says why"
                left_out[outcome.left_out] += 1
        written = {
            column.name: pa.array([row.get(column.name) for row in values], column.type) for column in self._columns
        }
        kept = table.take(taken) if taken else table.slice(0, 0)
        columns = [written[name] if name in written else kept.column(name) for name in self._schema.names]
        made_table = pa.table(columns, schema=self._schema)
        return made_table, Summary(len(values), len(rows), quarantined, dict(left_out), dict(counts))

    def __call__(self, row: pa.Table) -> pa.Table:
        task, read = pickle.loads(row.column("read")[0].as_buffer())
        if isinstance(read, str):
            return _answer(task.index, read)
        try:
            self.write(task, read)
        except ValueError as error:
            return _answer(task.index, str(error))
        return _answer(task.index, "")


def output_schema(carried: pa.Schema, columns: tuple[pa.Field, ...]) -> pa.Schema:
    """The carried columns with those of the recipe in their places, new ones behind them."""
    own = {column.name: column for column in columns}
    return pa.schema([own.pop(field.name, field) for field in carried] + list(own.values()))


def read_summary(path: str | Path) -> Summary:
    """What a shard says of itself."""
    with open_parquet(str(path)) as parquet:
        fields = json.loads(parquet.metadata.metadata[SUMMARY_KEY])
    records = [Quarantined(**{**record, "reason": Reason(record["reason"])}) for record in fields["quarantined"]]
    return Summary(**{**fields, "quarantined": records})


def work_here(tasks: list[Task], recipe: Recipe, carried: pa.Schema) -> Iterator[int]:
    """One process, no Ray; yields each finished shard's index."""
    if tasks:
        maker = ShardMaker(recipe, carried)
        for task in tasks:
            maker.write(task, read_task(task, recipe, carried))
            yield task.index


def work_on_ray(tasks: list[Task], recipe: Recipe, carried: pa.Schema, cluster: ClusterSection) -> Iterator[int]:
    """Reading tasks feed ``cluster.num_workers`` makers; yields each finished shard's index."""
    from ray_jobs.stream import quietly

    start_ray()
    check_fits(cluster)
    dataset = quietly(lambda: _dataset(tasks, recipe, carried, cluster))
    results: Any = iter(dataset.iter_batches(batch_size=1, batch_format="pyarrow"))
    with closing(results):
        for table in results:
            if error := table.column("error")[0].as_py():
                raise ValueError(error)
            yield table.column("shard")[0].as_py()


def _dataset(tasks: list[Task], recipe: Recipe, carried: pa.Schema, cluster: ClusterSection) -> "ray.data.Dataset":
    import ray.data

    from ray_jobs.stream import tasks_at_once

    rows = [{"task": pickle.dumps(task)} for task in tasks]
    read: Any = _read_row
    maker: Any = ShardMaker
    return (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map_batches(
            read,
            batch_size=1,
            batch_format="pyarrow",
            fn_kwargs={"recipe": recipe, "carried": carried},
            num_cpus=cluster.cpus_per_read,
            compute=ray.data.TaskPoolStrategy(size=min(tasks_at_once(1), len(rows))),
        )
        .map_batches(
            maker,
            batch_size=1,
            batch_format="pyarrow",
            fn_constructor_args=(recipe, carried),
            compute=ray.data.ActorPoolStrategy(size=min(cluster.num_workers, len(rows))),
            num_cpus=cluster.cpus_per_worker,
            num_gpus=(gpus_each(cluster) or None) if recipe.uses_gpu else None,
        )
    )


def _read_row(row: pa.Table, *, recipe: Recipe, carried: pa.Schema) -> pa.Table:
    task: Task = pickle.loads(row.column("task")[0].as_py())
    try:
        read: Read | str = read_task(task, recipe, carried)
    except ValueError as error:
        read = str(error)
    packed = pickle.dumps((task, read), protocol=5)
    return pa.table({"read": pa.array([packed], type=pa.large_binary())})


def _answer(index: int, error: str) -> pa.Table:
    return pa.table({"shard": [index], "error": [error]})
