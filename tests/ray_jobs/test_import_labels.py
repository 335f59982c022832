"""Who judged the pairs of an imported set, and pairs that nobody has."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from dpo_core.data.batches import DataSection
from dpo_core.data.schema import LABELS
from dpo_core.data.sources import PickAPic
from ray_jobs import cli
from ray_jobs.config import load_config
from ray_jobs.import_pairs import ImportJob, import_pairs
from ray_jobs.shards.job import shard_files
from ray_jobs.shards.source import read_source
from tests.tiny_data import make_pairs

QUIET = Console(quiet=True)


def rows_of(folder: Path) -> list[dict]:
    return [row for file in shard_files(folder) for row in pq.read_table(file).to_pylist()]


def test_who_labelled_a_set_stays_known_when_it_is_imported(tmp_path: Path):
    pairs = make_pairs(tmp_path / "pairs", 4)
    (pairs / "job.json").write_text('{"report": {"labelled_by": ["hpsv2/hpsv2"]}}')
    made = import_pairs(ImportJob(source=PickAPic(paths=[str(pairs)]), out=str(tmp_path / "out")), QUIET)
    assert made.report == {"labelled_by": ["hpsv2/hpsv2"]}


def unjudged(folder: Path) -> Path:
    """Ten pairs, of which two are marked as unlabelled and one has no labels."""
    pairs = make_pairs(folder, 10, shards=1) / "00000.parquet"
    table = pq.read_table(pairs)
    changes = {"has_label": [i not in (1, 4) for i in range(10)], "best_image_uid": ["x"] * 10}
    changes |= {name: [None if i == 7 else value for i, value in enumerate(table[name].to_pylist())] for name in LABELS}
    for name, values in changes.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
    pq.write_table(table, pairs)
    return pairs


@pytest.mark.parametrize(
    ("unlabelled", "totals"),
    [
        ("quarantine", {"read": 10, "made": 7, "in quarantine": 3}),
        ("drop", {"read": 10, "made": 7, "in quarantine": 0, "without a label": 3}),
        ("keep", {"read": 10, "made": 10, "in quarantine": 0}),
    ],
)
def test_pairs_that_nobody_judged_are_unusable_left_out_or_kept_for_a_scorer(tmp_path: Path, unlabelled, totals):
    words = [f"source.paths=[{unjudged(tmp_path / 'in')}]", f"filters.unlabelled={unlabelled}", "filters.ties=drop"]
    job = load_config(ImportJob, None, [*words, f"out={tmp_path / 'out'}", "max_quarantined_share=0.5"])
    assert import_pairs(job, QUIET).totals == totals
    lacking = [row for row in rows_of(tmp_path / "out") if row["has_label"] is False]
    assert [(row["ranking_id"], row["label_0"], row["label_1"], row["best_image_uid"]) for row in lacking] == (
        [(i, None, None, None) for i in (1, 4, 7)] if unlabelled == "keep" else []
    )
    scored = read_source(DataSection(paths=[str(tmp_path / "out")]), takes="all")
    assert scored.rows == totals["made"]


def test_a_table_without_labels_is_kept_for_a_scorer_or_refused_before_it_is_read(tmp_path: Path, capsys):
    words = ["import", "source.kind=table", f"source.paths=[{unjudged(tmp_path / 'in')}]", "source.label.kind=none"]
    assert cli.main([*words, f"out={tmp_path / 'out'}"]) == 2
    assert "use filters.unlabelled=keep" in " ".join(capsys.readouterr().err.split())
    assert cli.main([*words, f"out={tmp_path / 'out'}", "filters.unlabelled=keep"]) == 0
    assert {row["has_label"] for row in rows_of(tmp_path / "out")} == {False}
