import pyarrow.parquet as pq

from dpo_core.data.batches import DataSection
from ray_jobs.pairing.other_caption import OtherCaption
from ray_jobs.pairs import make_pairs
from tests.ray_jobs.pair_jobs import QUIET, REAL, job, made, real
from tests.tiny_data import make_pairs as make_set


def test_a_winner_meets_a_winner_of_another_caption(tmp_path):
    record = make_pairs(job(tmp_path / "out", OtherCaption(data=real()), shard_pairs=100), QUIET)
    source = pq.read_table(REAL).to_pylist()
    winner = {row["ranking_id"]: row[f"jpg_{int(row['label_1'])}"] for row in source}
    texts = {row[f"jpg_{int(row['label_1'])}"]: row["caption"] for row in source if row["label_0"] != 0.5}
    rows = made(tmp_path / "out")
    assert len(rows) + record.totals.get("alone with their caption in their shard", 0) == 23
    assert len(rows) > 15
    for row in rows:
        side = int(row["label_1"])
        assert row[f"jpg_{side}"] == winner[row["ranking_id"]]
        assert texts[row[f"jpg_{1 - side}"]] != row["caption"]


def test_a_caption_without_company_is_left_out_and_counted(tmp_path):
    data = DataSection(paths=[str(make_set(tmp_path / "set", 6, shards=1, group=1))], min_side=16)
    record = make_pairs(job(tmp_path / "out", OtherCaption(data=data), shard_pairs=1), QUIET)
    assert record.totals == {"read": 6, "made": 0, "in quarantine": 0, "alone with their caption in their shard": 6}
