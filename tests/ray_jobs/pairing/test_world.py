from ray_jobs.config import load_config
from ray_jobs.demo import DemoJob
from ray_jobs.pairing.world import World
from ray_jobs.pairs import make_pairs
from ray_jobs.shards.job import shard_files
from tests.ray_jobs.pair_jobs import FAST, QUIET, ROOT, job, made

RECORDED = [
    ("2c18ab1d", "d2838673", 0.0),
    ("560921cc", "dad144e5", 0.0),
    ("fcf13732", "7bbc4dfa", 0.5),
    ("981ea7b8", "3d37353a", 1.0),
    ("5ebf913a", "c4b01713", 1.0),
    ("da2656d9", "112b2ec7", 0.0),
]


def test_the_set_of_the_demo_is_a_function_of_its_config(tmp_path):
    pairs = load_config(DemoJob, ROOT / "tune_configs/demo/demo.yaml", ["pairs.recipe.count=20"]).pairs
    make_pairs(job(tmp_path / "out", pairs.recipe.model_copy(update={"sampler": FAST}), seed=pairs.seed), QUIET)
    rows = made(tmp_path / "out")
    again = tmp_path / "again"
    make_pairs(job(again, pairs.recipe.model_copy(update={"sampler": FAST}), seed=pairs.seed, shard_pairs=20), QUIET)
    assert len(shard_files(tmp_path / "out")) == 3
    assert [row["caption"] for row in rows] == [row["caption"] for row in made(again)]
    assert [row["model_0"] for row in rows] == [row["model_0"] for row in made(again)]
    drawn = [row for row in rows if "embedded" not in (row["model_0"], row["model_1"])]
    assert len(drawn) > 10
    assert drawn == [row for row in made(again) if row["ranking_id"] in {one["ranking_id"] for one in drawn}]


def test_drawings_of_the_world_are_the_ones_of_before(tmp_path):
    """Recorded before there were recipes: the demo's first pairs without samples."""
    mix = {"samples": 0, "drawing": 0, "near_miss": 3, "spoiled": 4}
    make_pairs(job(tmp_path / "out", World.model_validate({"count": 6, "mix": mix}), seed=0), QUIET)
    rows = made(tmp_path / "out")
    assert [(row["image_0_uid"][:8], row["image_1_uid"][:8], row["label_0"]) for row in rows] == RECORDED


def test_label_noise_and_ties_are_counted(tmp_path):
    mix = {"samples": 0, "drawing": 0, "near_miss": 1, "spoiled": 0}
    recipe = World.model_validate({"count": 24, "mix": mix, "label_noise": 0.4})
    record = make_pairs(job(tmp_path / "out", recipe), QUIET)
    plain = make_pairs(job(tmp_path / "plain", recipe.model_copy(update={"label_noise": 0.0})), QUIET)
    turned = sum(
        a["label_0"] != b["label_0"] for a, b in zip(made(tmp_path / "out"), made(tmp_path / "plain"), strict=True)
    )
    assert record.totals["turned round"] == turned > 3
    assert "turned round" not in {name for name, count in plain.totals.items() if count}
    assert record.totals["decided"] + record.totals["ties"] == record.totals["made"] == 24
    assert record.totals["ties"] == sum(row["label_0"] == 0.5 for row in made(tmp_path / "out"))
