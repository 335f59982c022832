import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from dpo_core.data.batches import DataSection
from dpo_core.data.files import expand_paths
from dpo_core.data.plan import Plan
from dpo_core.data.quarantine import read_quarantine
from dpo_core.section import Section
from ray_jobs.cluster import ClusterSection
from ray_jobs.shards.job import (
    Row,
    ShardJob,
    given_source,
    make_tasks,
    plan_shards,
    read_record,
    read_source,
    run_shards,
    settings_of,
    shard_files,
)
from ray_jobs.shards.source import Takes
from tests.ray_jobs.shard_recipes import Shout
from tests.tiny_data import make_pairs

pytestmark = pytest.mark.timeout(600)  # a cluster on a busy machine takes minutes to start

ASSETS = Path(__file__).parents[2] / "assets"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("pairs"), 20)


def job(pairs: Path, folder: Path, *, takes: Takes = "decided", workers: int = 0, settings=None, **recipe) -> ShardJob:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return ShardJob(
        verb="shout",
        folder=folder,
        source=read_source(DataSection(paths=[str(pairs)], max_quarantined_share=0.5), takes=takes),
        recipe=Shout(folder.parent / f"{folder.name}.notes", **recipe),
        settings=settings or {"loud": True},
        cluster=ClusterSection(num_workers=workers),
        shard_pairs=6,
        max_quarantined_share=0.5,
    )


def called(folder: Path) -> list[str]:
    return (folder.parent / f"{folder.name}.notes").read_text().split()


def table_of(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in shard_files(folder)])


def test_columns_of_the_recipe_are_written_and_all_others_are_carried_over(pairs, tmp_path):
    run_shards(job(pairs, tmp_path / "out"), Console(quiet=True))
    source, made = (
        pa.concat_tables([pq.read_table(f) for f in expand_paths([str(p)])]) for p in (pairs, tmp_path / "out")
    )
    assert made.drop(["caption", "widths"]).equals(source.drop(["caption"]))
    assert made.column("caption").to_pylist() == [text.upper() for text in source.column("caption").to_pylist()]
    assert made.column("widths").to_pylist() == [[32, 32]] * 20
    assert made.schema.names == [*source.schema.names, "widths"]


def test_a_made_set_can_be_trained_on_and_keeps_the_ids_of_its_pairs(pairs, tmp_path):
    run_shards(job(pairs, tmp_path / "out"), Console(quiet=True))
    source, made = (Plan.build(DataSection(paths=[str(path)])) for path in (pairs, tmp_path / "out"))
    assert made.pair_ids.to_pylist() == source.pair_ids.to_pylist()
    assert len(shard_files(tmp_path / "out")) == 3


@pytest.mark.parametrize(("takes", "made"), [("decided", 23), ("labelled", 24), ("all", 27)])
def test_every_row_of_a_hostile_set_is_made_left_out_or_in_quarantine(takes, made, tmp_path):
    work = job(ASSETS / "hostile.parquet", tmp_path / "out", takes=takes)
    record = run_shards(work, Console(quiet=True))
    lost = read_quarantine(tmp_path / "out" / "quarantine.parquet")
    ties = 1 if takes == "decided" else 0
    assert record.totals.get("ties left out", 0) == ties
    assert record.totals["made"] == len(table_of(tmp_path / "out")) == 40 - ties - len(lost) == made
    assert record.totals["in quarantine"] == len({item.row for item in lost}) == len(lost)
    expected = {
        case["row"]: case["reason"] for case in json.loads((ASSETS / "hostile.json").read_text())["hostile.parquet"]
    }
    found = {item.row: str(item.reason) for item in lost if item.detail != "too long to shout"}
    assert found == {row: expected[row] for row in found}
    assert work.source.rows + sum(work.source.left_out.values()) + len(work.source.quarantined) == 40


def test_what_the_recipe_leaves_out_and_counts_is_added_up(pairs, tmp_path):
    record = run_shards(job(pairs, tmp_path / "out", leaves_out="7"), Console(quiet=True))
    assert record.totals == {"read": 20, "made": 19, "in quarantine": 0, "left out by the test": 1, "calls": 20}
    assert record.report == {"shards": 3}
    assert read_record(tmp_path / "out") == record


def test_a_row_may_become_several(pairs, tmp_path):
    run_shards(job(pairs, tmp_path / "out", twice=True), Console(quiet=True))
    source = pa.concat_tables([pq.read_table(file) for file in expand_paths([str(pairs)])])
    ids = source.column("ranking_id").to_pylist()
    assert table_of(tmp_path / "out").column("ranking_id").to_pylist() == [i for i in ids for _ in (0, 1)]


def test_a_job_that_broke_goes_on_after_its_last_whole_shard(pairs, tmp_path):
    whole = tmp_path / "whole"
    run_shards(job(pairs, whole), Console(quiet=True))
    order, out = called(whole), tmp_path / "out"
    with pytest.raises(ValueError, match=f"no answer for {order[9]}"):
        run_shards(job(pairs, out, breaks_at=order[9]), Console(quiet=True))
    assert not shard_files(out)
    assert not read_record(out).complete
    (out / ".pairs-00001.parquet.part.999").write_bytes(b"left by a killed process")
    (out.parent / "out.notes").unlink()
    run_shards(job(pairs, out), Console(quiet=True))
    assert called(out) == order[8:]
    assert [Path(file).read_bytes() for file in shard_files(out)] == [
        Path(file).read_bytes() for file in shard_files(whole)
    ]
    assert not list(out.glob(".*"))


def test_a_job_that_died_while_it_named_its_shards_makes_none_again(pairs, tmp_path):
    out = tmp_path / "out"
    record = run_shards(job(pairs, out), Console(quiet=True))
    last = Path(shard_files(out)[-1])
    last.rename(f"{last}.part")
    (out / "job.json").write_text(json.dumps({**vars(record), "complete": False}))
    (out.parent / "out.notes").unlink()
    assert run_shards(job(pairs, out), Console(quiet=True)) == record
    assert not (out.parent / "out.notes").exists()
    assert len(shard_files(out)) == 3


def test_a_complete_folder_is_left_as_it_is(pairs, tmp_path, capsys):
    run_shards(job(pairs, tmp_path / "out"), Console(quiet=True))
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    run_shards(job(pairs, tmp_path / "out"))
    assert "nothing to do" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == before


def test_a_folder_of_another_job_is_refused_with_the_difference(pairs, tmp_path):
    run_shards(job(pairs, tmp_path / "out"), Console(quiet=True))
    with pytest.raises(
        ValueError, match=r"holds another set \(loud True there, False here, extra None there, 1 here\)"
    ):
        run_shards(job(pairs, tmp_path / "out", settings={"loud": False, "extra": 1}))
    more = make_pairs(tmp_path / "more", 24)
    with pytest.raises(ValueError, match=r"source [0-9a-f]{12} there"):
        run_shards(job(more, tmp_path / "out"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.jpg").touch()
    with pytest.raises(ValueError, match=r"not empty and holds no job\.json"):
        run_shards(job(pairs, tmp_path / "mine"))


def test_too_many_unusable_rows_leave_the_job_unfinished(tmp_path):
    work = job(ASSETS / "hostile.parquet", tmp_path / "out")
    with pytest.raises(ValueError, match=r"16 of 40 rows"):
        run_shards(replace(work, max_quarantined_share=0.3), Console(quiet=True))
    assert not shard_files(tmp_path / "out")
    assert len(read_quarantine(tmp_path / "out" / "quarantine.parquet")) == 16
    (tmp_path / "out.notes").unlink()
    assert run_shards(work, Console(quiet=True)).complete
    assert not (tmp_path / "out.notes").exists()


def test_a_job_whose_rows_fail_and_fail_stops_long_before_its_end(tmp_path):
    work = job(ASSETS / "hostile.parquet", tmp_path / "out")
    with pytest.raises(ValueError, match="rows"):
        run_shards(replace(work, max_quarantined_share=0.01), Console(quiet=True))
    assert len(list((tmp_path / "out").glob("pairs-*.part"))) < len(make_tasks(work))


class Inner(Section):
    dtype: str = "float32"
    folder: str = "here"


class Outer(Section):
    inner: Inner = Inner()
    cluster: ClusterSection = ClusterSection()
    names: list[str] = ["a"]


def test_settings_are_dotted_and_leave_out_what_changes_nothing():
    settings = settings_of(Outer(), leave_out=("cluster", "inner.folder"))
    assert settings == {"inner.dtype": "float32", "names": ["a"]}


def test_rows_may_come_from_no_file(tmp_path):
    rows = [Row(f"p{i}", None, ((f"prompt {i}",),) * 2, {"ranking_id": None}, []) for i in range(5)]
    work = job(ASSETS / "real_pairs.parquet", tmp_path / "out")
    recipe = Shout(tmp_path / "notes")
    recipe.read = lambda row: [i for i, _ in enumerate(row.read)]
    made = replace(work, source=given_source(rows, rows_per_group=2), recipe=recipe)
    run_shards(made, Console(quiet=True))
    assert table_of(tmp_path / "out").column("caption").to_pylist() == [f"PROMPT {i}" for i in range(5)]


def test_the_plan_tells_rows_and_shards_and_writes_nothing(tmp_path):
    shown = dict(plan_shards(job(ASSETS / "hostile.parquet", tmp_path / "out")))
    assert shown["rows"] == "33 of 40 (6 in quarantine, 1 ties left out)"
    assert shown["shards"].endswith("of which 0 are there")
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
def test_ray_actors_write_the_bytes_that_one_process_writes(tmp_path, ray_cluster):
    alone, shared = (job(ASSETS / "hostile.parquet", tmp_path / name, workers=n) for n, name in enumerate(["a", "b"]))
    records = [run_shards(work, Console(quiet=True)) for work in (alone, shared)]
    assert records[0] == records[1]
    ours, theirs = ([Path(file).read_bytes() for file in shard_files(work.folder)] for work in (alone, shared))
    assert ours == theirs
    broken = job(ASSETS / "hostile.parquet", tmp_path / "c", workers=1, breaks_at=called(tmp_path / "a")[0])
    with pytest.raises(ValueError, match="no answer for"):
        run_shards(broken, Console(quiet=True))
