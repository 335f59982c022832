from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from dpo_core.data.plan import Plan
from dpo_core.data.quarantine import read_quarantine
from dpo_core.data.section import DataSection
from eval.scorers.shapes import Shapes
from eval.stats import win_rate_interval
from ray_jobs.caption import CaptionJob
from ray_jobs.caption import shard_job as caption_job
from ray_jobs.captioning.section import DescribeByEndpoint
from ray_jobs.cluster import ClusterSection
from ray_jobs.config import load_config
from ray_jobs.label import LabelJob, main, shard_job
from ray_jobs.labelling import agreement
from ray_jobs.shards.job import run_shards, shard_files
from tests.local_s3 import environment, serve_s3
from tests.ray_jobs.chat_server import chat_server
from tests.ray_jobs.colour_pairs import colour_pairs
from tests.ray_jobs.redness import Paleness, Redness

pytestmark = [
    pytest.mark.timeout(600),  # a cluster on a busy machine takes minutes to start
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings"),  # the test's scorer is none of AnyScorer
]

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "tests" / "assets"
QUIET = Console(quiet=True)


def job(pairs: Path, out: Path, *, scorer=None, **settings) -> LabelJob:
    """Image 1 is the bluer one in every pair, by 100 of 255."""
    data = DataSection(**{"paths": [str(pairs)], "max_quarantined_share": 0.6, **settings.pop("data", {})})
    common = {"data": data, "out": str(out), "shard_pairs": 2, "scorer": Shapes()}
    work = LabelJob(**{**common, **settings})
    return work.model_copy(update={"scorer": scorer or Redness()})


def label(*args, **settings):
    return run_shards(shard_job(job(*args, **settings)), QUIET)


def rows_of(out: Path) -> list[dict]:
    return [row for file in shard_files(out) for row in pq.read_table(file).to_pylist()]


def test_relabelling_makes_the_scorers_winner_win_and_keeps_the_old_labels(tmp_path):
    pairs = colour_pairs(tmp_path / "pairs", 6, labels=[1, 0, 0.5, float("nan"), 1, 0])
    record = label(pairs, tmp_path / "out", column="blue")
    rows = rows_of(tmp_path / "out")
    assert [(row["label_0"], row["label_1"]) for row in rows] == [(0.0, 1.0)] * 6
    assert [row["given_label_0"] for row in rows] == [1, 0, 0.5, None, 1, 0]
    assert [row["redness_blue_1"] - row["redness_blue_0"] for row in rows] == pytest.approx([100 / 255] * 6)
    assert Plan.build(DataSection(paths=[str(tmp_path / "out")])).rows == 6
    assert record.report["agreement"] == 0.5
    assert {"agree": 2, "disagree": 2, "tie for one of the two": 1}.items() <= record.report.items()
    assert record.report["labelled pairs"] == 5
    assert record.report["labelled_by"] == ["redness/blue"]


def test_a_set_in_a_bucket_is_labelled_as_on_a_disk(tmp_path, monkeypatch):
    pairs = colour_pairs(tmp_path / "buckets" / "pairs", 4)
    label(pairs, tmp_path / "near", column="blue")
    with serve_s3(tmp_path / "buckets") as served:
        for name, value in environment(served).items():
            monkeypatch.setenv(name, value)
        far = job(tmp_path, tmp_path / "far", column="blue", data={"paths": ["s3://pairs"]})
        run_shards(shard_job(far), QUIET)
    assert [Path(file).read_bytes() for file in shard_files(tmp_path / "near")] == [
        Path(file).read_bytes() for file in shard_files(tmp_path / "far")
    ]


def test_scores_closer_than_the_threshold_make_a_tie(tmp_path):
    pairs = colour_pairs(tmp_path / "pairs", 4)
    record = label(pairs, tmp_path / "out", column="blue", tie_threshold=0.4)
    assert [(row["label_0"], row["best_image_uid"]) for row in rows_of(tmp_path / "out")] == [(0.5, "none")] * 4
    assert record.report["agreement"] == 0.5
    assert record.totals["ties of the scorer"] == 4
    assert [row["label_0"] for row in rows_of_run(pairs, tmp_path / "near", tie_threshold=0.39)] == [0.0] * 4


def rows_of_run(pairs: Path, out: Path, **settings) -> list[dict]:
    label(pairs, out, column="blue", **settings)
    return rows_of(out)


def test_where_less_is_better_the_smaller_score_wins(tmp_path):
    pairs = colour_pairs(tmp_path / "pairs", 2)
    assert [row["label_0"] for row in rows_of_run(pairs, tmp_path / "out", scorer=Paleness())] == [1.0, 1.0]


def test_filtering_keeps_the_pairs_on_which_both_agree_untouched(tmp_path):
    pairs = colour_pairs(tmp_path / "pairs", 6, labels=[1, 0, 0.5, 0, 1, 0])
    record = label(pairs, tmp_path / "out", column="blue", mode="filter_agreeing")
    rows = rows_of(tmp_path / "out")
    assert [row["ranking_id"] for row in rows] == [1, 3, 5]
    source = pq.read_table(pairs / "pairs.parquet")
    kept = pa.concat_tables([pq.read_table(file) for file in shard_files(tmp_path / "out")]).select(source.schema.names)
    assert kept.equals(source.take([1, 3, 5]))
    assert record.totals == {
        "read": 6, "made": 3, "in quarantine": 0, "ties left out": 1, "the scorer disagrees": 2, "agree": 3,
        "disagree": 2,
    }  # fmt: skip
    assert record.report["agreement"] == 0.6


def test_adding_scores_leaves_every_row_and_label_as_it_is(tmp_path):
    pairs = colour_pairs(tmp_path / "pairs", 4, labels=[1, 0.5, float("nan"), 0])
    label(pairs, tmp_path / "out", mode="add_scores")
    source = pq.read_table(pairs / "pairs.parquet")
    made = pa.concat_tables([pq.read_table(file) for file in shard_files(tmp_path / "out")])
    added = [f"redness{name}_{side}" for name in ("", "_blue", "_prompt_length") for side in (0, 1)]
    assert made.schema.names == [*source.schema.names, *added]
    for name in source.schema.names:
        assert made.column(name).combine_chunks().equals(source.column(name).combine_chunks()) or name.startswith(
            "label"
        )
    np.testing.assert_array_equal(made.column("label_0"), source.column("label_0"))
    assert made.column("redness_0").to_pylist() == pytest.approx([8 * i / 255 for i in range(4)])


def test_a_second_scorer_is_compared_with_people_and_not_with_the_first(tmp_path):
    pairs = colour_pairs(tmp_path / "pairs", 4, labels=[1, 1, 1, 0])
    first = label(pairs, tmp_path / "one", column="blue")
    assert first.report["agreement"] == 0.25
    again = label(tmp_path / "one", tmp_path / "two", column="blue", scorer=Paleness())
    assert again.report["agreement"] == 0.75
    assert [row["given_label_0"] for row in rows_of(tmp_path / "two")] == [1, 1, 1, 0]


def test_who_labelled_a_set_stays_known_in_what_is_made_of_it(tmp_path):
    pairs = colour_pairs(tmp_path / "pairs", 4)
    label(pairs, tmp_path / "one", column="blue")
    scored = label(tmp_path / "one", tmp_path / "two", mode="add_scores", scorer=Redness(name="other"))
    assert scored.report["labelled_by"] == ["redness/blue"]
    kept = label(
        tmp_path / "two", tmp_path / "three", column="blue", mode="filter_agreeing", scorer=Redness(name="third")
    )
    assert kept.report["labelled_by"] == ["redness/blue", "third/blue"]
    again = label(tmp_path / "three", tmp_path / "four", column="blue", scorer=Redness(name="last"))
    assert again.report["labelled_by"] == ["last/blue"]
    with chat_server() as server:
        endpoint = DescribeByEndpoint(base_url=server.base_url, model=server.model)
        data = DataSection(paths=[str(tmp_path / "three")])
        captions = CaptionJob(data=data, out=str(tmp_path / "captions"), describe=endpoint)
        assert run_shards(caption_job(captions), QUIET).report["labelled_by"] == ["redness/blue", "third/blue"]


@pytest.mark.parametrize("captions", ["shared", "per_image"])
def test_images_are_judged_by_the_prompt_of_the_pair_even_where_each_has_a_caption(tmp_path, captions):
    table = pq.read_table(colour_pairs(tmp_path / "pairs", 2) / "pairs.parquet")
    for side in (0, 1):
        table = table.append_column(f"caption_{side}", pa.array([f"{'x' * (100 + side)}"] * 2))
    pq.write_table(table, tmp_path / "pairs" / "pairs.parquet")
    label(tmp_path / "pairs", tmp_path / "out", mode="add_scores", data={"captions": captions})
    lengths = [row[f"redness_prompt_length_{side}"] for row in rows_of(tmp_path / "out") for side in (0, 1)]
    assert lengths == [len("prompt {number} 0")] * 4
    if captions == "per_image":
        pq.write_table(table.drop(["caption"]), tmp_path / "pairs" / "pairs.parquet")
        label(tmp_path / "pairs", tmp_path / "bare", mode="add_scores", data={"captions": captions})
        lengths = [row[f"redness_prompt_length_{side}"] for row in rows_of(tmp_path / "bare") for side in (0, 1)]
        assert lengths == [100, 101] * 2


def test_the_batch_size_changes_nothing(tmp_path):
    pairs = colour_pairs(tmp_path / "pairs", 5, group=5)
    made = [rows_of_run(pairs, tmp_path / str(size), batch_size=size) for size in (1, 3, 100)]
    assert made[0] == made[1] == made[2]
    label(pairs, tmp_path / "3", column="blue", batch_size=7)


def test_a_pair_without_a_score_is_in_quarantine_unless_only_scores_are_wanted(tmp_path):
    pairs = colour_pairs(tmp_path / "pairs", 4)
    record = label(pairs, tmp_path / "out", scorer=Redness(nan_below=0.05))
    lost = read_quarantine(tmp_path / "out" / "quarantine.parquet")
    assert [(item.row, str(item.reason)) for item in lost] == [(0, "score_missing"), (1, "score_missing")]
    assert record.totals["made"] == 2
    record = label(pairs, tmp_path / "scores", scorer=Redness(nan_below=0.05), mode="add_scores")
    assert [row["redness_0"] is None for row in rows_of(tmp_path / "scores")] == [True, True, False, False]
    assert record.totals["not scored"] == 2
    with pytest.raises(ValueError, match="allowed: finite numbers"):
        label(pairs, tmp_path / "inf", scorer=Redness(infinite=True))


def test_a_hostile_set_is_labelled_or_in_quarantine(tmp_path):
    record = label(ASSETS / "hostile.parquet", tmp_path / "out")
    assert record.totals["made"] + record.totals["in quarantine"] == record.totals["read"] == 40
    assert record.totals["made"] == 29


def test_agreement_counts_ties_one_half_and_has_an_interval():
    from collections import Counter

    found = agreement(Counter({"agree": 6, "disagree": 2, "tie for one of the two": 2}), "x")
    assert found["agreement"] == 0.7
    low, high = win_rate_interval(np.array([0.0] * 2 + [0.5] * 2 + [1.0] * 6))
    assert found["95 % interval"] == [round(low, 4), round(high, 4)]
    assert low < 0.7 < high
    assert "nobody" in agreement(Counter(), "x")["agreement"]


def test_the_checker_of_shapes_agrees_with_drawings_it_would_choose(tmp_path):
    from dpo_core.data.sources.drawings import write_drawings

    write_drawings(tmp_path / "pairs", 24)
    data = DataSection(paths=[str(tmp_path / "pairs")])
    work = LabelJob(data=data, out=str(tmp_path / "out"), scorer=Shapes(), column="score")
    assert run_shards(shard_job(work), QUIET).report["agreement"] > 0.95


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scorer.kind=shapes", "column=beauty"], "'beauty' is not one of correct"),
        (["scorer.kind=clip_i"], "reference images"),
    ],
)
def test_a_scorer_that_cannot_judge_pairs_is_refused_in_one_line(tmp_path, capsys, words, message):
    assert main([f"data.paths=[{colour_pairs(tmp_path / 'pairs', 2)}]", *words]) == 1
    assert message in capsys.readouterr().err


def test_a_scorer_that_is_not_given_is_asked_for_with_those_there_are(capsys):
    assert main([]) == 2
    assert "scorer.kind: is required but not given; allowed: shapes, pickscore" in capsys.readouterr().err


def test_the_dry_run_tells_images_and_writes_nothing(tmp_path, capsys):
    pairs = colour_pairs(tmp_path / "pairs", 5, labels=[1, 0, 0.5, float("nan"), 1])
    words = [f"data.paths=[{pairs}]", f"out={tmp_path / 'out'}", "scorer.kind=shapes", "--dry-run"]
    assert main(words) == 0
    assert "10 to score, 16 at once" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("preset", sorted((ROOT / "tune_configs" / "data").glob("label*.yaml")), ids=lambda p: p.stem)
def test_presets_are_whole(preset):
    assert load_config(LabelJob, preset, []).out.endswith(preset.stem)
    assert preset.read_text().startswith("# ")


@pytest.mark.ray
def test_ray_workers_write_the_labels_that_one_process_writes(tmp_path, ray_cluster):
    alone = job(ASSETS / "hostile.parquet", tmp_path / "a")
    shared = alone.model_copy(update={"out": str(tmp_path / "b"), "cluster": ClusterSection(num_workers=1)})
    records = [run_shards(shard_job(work), QUIET) for work in (alone, shared)]
    assert records[0] == records[1]
    ours, theirs = ([Path(file).read_bytes() for file in shard_files(tmp_path / name)] for name in "ab")
    assert ours == theirs
