import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo_core.data.plan import DataSection, Plan
from dpo_core.data.quarantine import counts_by_reason
from dpo_core.data.schema import SCHEMA

ASSETS = Path(__file__).parents[2] / "assets"


def pairs(path: Path, ids: list[int | None], **columns) -> Path:
    rows = [
        {**dict.fromkeys(SCHEMA.names), "caption": "a", "label_0": 1.0, "label_1": 0.0, "ranking_id": i} for i in ids
    ]
    table = pa.Table.from_pylist([row | columns for row in rows], schema=SCHEMA)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=2)
    return path


def ids_of(*paths: Path) -> list[str]:
    return Plan.build(DataSection(paths=[str(path) for path in paths])).pair_ids.to_pylist()


def test_every_row_is_usable_or_a_tie_or_in_quarantine():
    plan = Plan.build(DataSection(paths=[str(ASSETS / "hostile.parquet")], max_quarantined_share=0.5))
    assert (plan.total, plan.rows, plan.ties, len(plan.quarantined)) == (40, 33, 1, 6)
    assert counts_by_reason(plan.quarantined) == dict.fromkeys(
        ["caption_empty", "caption_null", "label_inconsistent", "label_missing", "label_nan", "label_out_of_range"], 1
    )
    assert [(record.row, str(record.reason)) for record in plan.quarantined][:2] == [
        (26, "caption_null"),
        (27, "caption_empty"),
    ]


def test_ties_of_real_pairs_are_counted_and_left_out():
    plan = Plan.build(DataSection(paths=[str(ASSETS / "real_pairs.parquet")]))
    assert (plan.total, plan.rows, plan.ties) == (24, 23, 1)


def test_text_that_is_not_utf8_does_not_stop_the_plan():
    assert Plan.build(DataSection(paths=[str(ASSETS / "hostile_invalid_utf8.parquet")])).rows == 3


def test_unique_ranking_ids_are_the_pair_ids(tmp_path):
    assert ids_of(pairs(tmp_path / "a.parquet", [4, 9, 2])) == ["4", "9", "2"]


def test_shared_and_missing_ranking_ids_give_way_to_file_name_and_row(tmp_path):
    first, second = pairs(tmp_path / "a.parquet", [1, 2, 3]), pairs(tmp_path / "b.parquet", [3, None, -5])
    assert ids_of(first, second) == ["1", "2", "a.parquet#2", "b.parquet#0", "b.parquet#1", "b.parquet#2"]


def test_files_of_one_name_with_the_same_ids_do_not_collide(tmp_path):
    first, second = pairs(tmp_path / "x" / "a.parquet", [1]), pairs(tmp_path / "y" / "a.parquet", [1])
    assert ids_of(first, second) == ["x/a.parquet#0", "y/a.parquet#0"]


def test_ids_and_fingerprint_do_not_depend_on_where_the_files_lie(tmp_path):
    pairs(tmp_path / "here" / "x" / "a.parquet", [1, 1])
    pairs(tmp_path / "here" / "y" / "a.parquet", [1])
    shutil.copytree(tmp_path / "here", tmp_path / "deeper" / "there")
    plans = [Plan.build(DataSection(paths=[str(tmp_path / place)])) for place in ("here", "deeper/there")]
    assert plans[0].pair_ids == plans[1].pair_ids
    assert plans[0].fingerprint == plans[1].fingerprint


def test_the_fingerprint_changes_with_the_rows(tmp_path):
    before = Plan.build(DataSection(paths=[str(pairs(tmp_path / "a.parquet", [1, 2]))]))
    after = Plan.build(DataSection(paths=[str(pairs(tmp_path / "a.parquet", [1, 3]))]))
    assert before.fingerprint != after.fingerprint


def test_a_folder_a_glob_and_a_list_of_files_give_the_same_plan(tmp_path):
    files = [pairs(tmp_path / f"{name}.parquet", [index]) for index, name in enumerate("abc")]
    lists = [[str(file) for file in files], [str(tmp_path)], [f"{tmp_path}/*.parquet"]]
    assert len({Plan.build(DataSection(paths=paths)).fingerprint for paths in lists}) == 1


def test_a_slot_tells_where_its_row_lies(tmp_path):
    plan = Plan.build(DataSection(paths=[str(pairs(tmp_path / "a.parquet", [5, 6, 7]))]))
    slot = plan.slot(2, epoch=4)
    assert (slot.group.index, slot.group.first_row, slot.row, slot.pair_id, slot.epoch) == (1, 2, 0, "7", 4)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "data.paths is empty"),
        (["{}/none.parquet"], "leads to no parquet file"),
        (["{}/*.pq"], "leads to no parquet file"),
        (["nfs2://bucket/a.parquet"], "nfs2:// cannot be read"),
        (["memory://nothing/here"], "leads to no parquet file"),
        (["{}", "{}/a.parquet"], "a.parquet twice"),
        (["{}/broken.txt"], r"broken.txt cannot be read as parquet"),
    ],
)
def test_paths_that_cannot_be_used_are_named(tmp_path, paths, message):
    pairs(tmp_path / "a.parquet", [1])
    (tmp_path / "broken.txt").write_text("not parquet")
    with pytest.raises(ValueError, match=message):
        Plan.build(DataSection(paths=[path.format(tmp_path) for path in paths]))


def test_a_truncated_file_is_one_clear_error(tmp_path):
    file = pairs(tmp_path / "a.parquet", [1, 2])
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as parquet .*truncated"):
        ids_of(file)


def test_a_damaged_row_group_is_one_clear_error(tmp_path):
    file = pairs(tmp_path / "a.parquet", list(range(50)))
    data = bytearray(file.read_bytes())
    data[4:400] = b"\xee" * 396
    file.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"row group \d+ of .*a\.parquet cannot be read"):
        ids_of(file)


def test_a_set_without_a_usable_row_is_refused_with_its_counts(tmp_path):
    file = pairs(tmp_path / "a.parquet", [1, 2, 3], label_0=0.5, label_1=0.5)
    with pytest.raises(ValueError, match=r"no row of .* 3 rows, 3 ties, 0 unusable"):
        ids_of(file)


def test_too_many_unusable_rows_stop_the_job_with_their_reasons(tmp_path):
    file = pairs(tmp_path / "a.parquet", [1, 2, 3], caption="")
    with pytest.raises(ValueError, match=r"3 of 3 rows .*caption_empty 3"):
        ids_of(file)


def test_an_empty_file_adds_no_rows(tmp_path):
    assert ids_of(pairs(tmp_path / "a.parquet", []), pairs(tmp_path / "b.parquet", [1])) == ["1"]
