import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dpo_core.data.quarantine import read_quarantine
from dpo_core.data.sources.shapes import captions
from dpo_core.recipe import TrainSection
from ray_jobs.config import load_config
from ray_jobs.pairing.painter import Painter, as_read
from ray_jobs.pairing.samples import Judge, Sample, Samples, is_tie, ranked
from ray_jobs.pairs import make_pairs
from tests.ray_jobs.pair_jobs import FAST, QUIET, REAL, job, made, samples
from tests.train_runs import run


def test_the_best_sample_of_a_prompt_meets_the_worst(tmp_path):
    everything = samples(take="all", judges=[{"column": "score"}])
    make_pairs(job(tmp_path / "all", everything), QUIET)
    make_pairs(job(tmp_path / "out", everything.model_copy(update={"take": "best_worst"})), QUIET)
    rows, every = made(tmp_path / "out"), made(tmp_path / "all")
    assert (len(rows), len(every)) == (5, 15)
    assert [row["caption"] for row in rows] == captions("train", singles=False)[:5]
    assert {row["model_0"] for row in rows} == {"embedded"}
    for row in rows:
        scores = [
            other[name] for other in every if other["caption"] == row["caption"] for name in ("score_0", "score_1")
        ]
        assert sorted((row["score_0"], row["score_1"])) == [min(scores), max(scores)]
        better = {True: 1.0, False: 0.0}[row["score_0"] > row["score_1"]]
        assert row["label_0"] == (0.5 if row["score_0"] == row["score_1"] else better)
    assert len({row["ranking_id"] for row in every}) == 15


def test_images_depend_on_prompt_and_seed_alone_and_are_those_of_an_evaluation(tmp_path):

    make_pairs(job(tmp_path / "out", samples(limit=1, images_per_prompt=2)), QUIET)
    (row,) = made(tmp_path / "out")
    painter = Painter("embedded", FAST)
    drawn = [np.asarray(painter.draw([(row["caption"], seed)])[0], dtype=int) for seed in (3, 4)]
    stored = [np.asarray(as_read(row[name]), dtype=int) for name in ("jpg_0", "jpg_1")]
    distances = [[np.abs(a - b).mean() for b in drawn] for a in stored]
    assert sorted(np.argmin(distances, axis=1)) == [0, 1]
    assert np.min(distances, axis=1).max() < 3  # what JPEG costs


def test_a_margin_makes_close_images_a_tie_and_doubt_among_judges_another(tmp_path):
    two = [
        {"scorer": {"kind": "shapes"}, "column": "score"},
        {"scorer": {"kind": "shapes", "name": "b"}, "column": "quality"},
    ]
    loose = make_pairs(job(tmp_path / "loose", samples(take="all", limit=3, judges=two)), QUIET)
    strict = make_pairs(job(tmp_path / "strict", samples(take="all", limit=3, judges=two, margin=0.2)), QUIET)
    agreed = make_pairs(job(tmp_path / "agreed", samples(take="all", limit=3, judges=two, unanimous=True)), QUIET)
    for folder, margin in (("loose", 0.0), ("strict", 0.2)):
        for row in made(tmp_path / folder):
            difference = row["score_0"] - row["score_1"]
            decided = abs(difference) >= margin and difference != 0
            assert row["label_0"] == (float(difference > 0) if decided else 0.5)
    assert loose.totals.get("ties", 0) < strict.totals["ties"]
    assert loose.totals.get("ties", 0) < agreed.totals["ties"] < 9
    assert loose.report["labelled_by"] == ["shapes/score", "b/quality"]


def test_weights_decide_between_judges():

    first, second = Sample(b"a", (1.0, 0.0), 0.0), Sample(b"b", (0.0, 1.0), 0.0)

    def winner(*weights: float) -> bytes:
        totals = [sum(w * s for w, s in zip(weights, one.scores, strict=True)) for one in (first, second)]
        pair = [Sample(one.data, one.scores, total) for one, total in zip((first, second), totals, strict=True)]
        return next(iter(ranked(pair, "best_worst")))[0].data

    assert (winner(2, 1), winner(1, 2)) == (b"a", b"b")
    section = Samples(judges=[Judge(), Judge()], unanimous=True)
    assert is_tie(section, Sample(b"", (1.0, 0.0), 2.0), Sample(b"", (0.0, 1.0), 1.0))
    assert not is_tie(section, Sample(b"", (1.0, 2.0), 3.0), Sample(b"", (0.0, 1.0), 1.0))


def test_a_prompt_whose_images_have_no_score_is_in_quarantine_with_the_reason(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle above a blue square\na red circle\na red circle\n")
    recipe = samples(prompts=str(tmp_path / "prompts.txt"), judges=[{"column": "relation"}])
    with pytest.raises(ValueError, match="label_nan 1"):
        make_pairs(job(tmp_path / "out", recipe), QUIET)
    (lost,) = read_quarantine(tmp_path / "out" / "quarantine.parquet")
    assert (lost.pair_id, lost.detail) == ("1", "0 of 3 images have a score by shapes/relation")


def test_an_exported_lora_draws_for_its_own_next_round(tmp_path):
    config = load_config(
        TrainSection, None,
        ["family.kind=sd15", "family.model=embedded", "objective.kind=dpo", f"data.paths=[{REAL}]",
         "data.resolution=64", "policy.method=lora", "loop.max_steps=1",
         "loop.global_batch_size=2", "loop.worker_batch_size=2", "data.lanes=2", "optim.lr=0.01"],
    )  # fmt: skip
    run(config, tmp_path / "run")
    model = str(tmp_path / "run" / "model")
    make_pairs(job(tmp_path / "lora", samples(model=model, limit=1)), QUIET)
    make_pairs(job(tmp_path / "base", samples(limit=1)), QUIET)
    (ours,), (theirs,) = made(tmp_path / "lora"), made(tmp_path / "base")
    assert ours["model_0"] == ours["model_1"] == model
    assert {ours["image_0_uid"], ours["image_1_uid"]}.isdisjoint({theirs["image_0_uid"], theirs["image_1_uid"]})


def test_a_judge_without_the_column_or_in_need_of_reference_images_is_refused():
    for judge, message in (
        ({"column": "beauty"}, "'beauty' is not one of correct"),
        ({"scorer": {"kind": "clip_i"}}, "compares with reference images"),
    ):
        with pytest.raises(ValueError, match=message):
            samples(judges=[judge])


def test_other_weights_of_a_judge_are_another_set(tmp_path):
    head = tmp_path / "head.safetensors"
    ids = []
    for scale in (1.0, 2.0):
        save_file({"layers.0.weight": torch.full((1, 768), scale)}, head)
        recipe = samples(judges=[{"scorer": {"kind": "aesthetic", "clip": str(tmp_path), "head": str(head)}}])
        ids.append(recipe.identity()["recipe.judges.aesthetic/aesthetic"])
    assert ids[0] != ids[1]
