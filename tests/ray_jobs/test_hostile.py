"""Every row of the hostile files, through each verb that reads pairs and back out of its records."""

import json
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from rich.console import Console

from dpo_core.data.plan import Plan
from dpo_core.data.quarantine import counts_by_reason, read_quarantine
from dpo_core.ledger import check_ledger, planned_visits, read_ledger
from ray_jobs import caption, cli, label, pairs, patches, prepare, train
from ray_jobs.config import load_config
from ray_jobs.shards.job import run_shards
from tests.ray_jobs.chat_server import chat_server
from tests.ray_jobs.redness import Redness
from tests.tiny_models import make_tiny_sd
from tests.tiny_vision import make_tiny_vision

ASSETS = Path(__file__).parents[1] / "assets"
HOSTILE = json.loads((ASSETS / "hostile.json").read_text())
ROWS = {(file, case["row"]): case for file, cases in HOSTILE.items() for case in cases}
REASONS = {place: case["reason"] for place, case in ROWS.items() if case["expect"] == "quarantine"}
TIES = {place for place, case in ROWS.items() if case["kind"] == "tie"}
BATCH = 9
UPDATES = 6  # more than an epoch of the 33 pairs that look usable before their images are opened


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_tiny_sd(tmp_path_factory.mktemp("model"))


def words(model: Path, paths: list[Path]) -> list[str]:
    return [
        f"family.model={model}", f"data.paths=[{', '.join(map(str, paths))}]", "data.resolution=16",
        "data.max_quarantined_share=0.5", "cluster.num_workers=0",
    ]  # fmt: skip


def training(storage: Path) -> list[str]:
    return [
        f"run.storage={storage}", "loop.log_every=2", "loop.checkpoint_every=2", f"loop.max_steps={UPDATES}",
        f"loop.global_batch_size={BATCH}", "loop.worker_batch_size=4",
    ]  # fmt: skip


def check_run(folder: Path) -> dict[str, int]:
    """Hold quarantine, ledger and logged totals of a run to hostile.json; the totals by reason."""
    records = read_quarantine(folder / "quarantine.parquet")
    assert {(Path(record.file).name, record.row): str(record.reason) for record in records} == REASONS
    job = load_config(train.TrainJob, folder / "config.yaml", [])
    plan = Plan.build(job.data)
    share = job.loop.share(train.LocalContext(folder))
    proof = check_ledger(read_ledger(folder / "ledger.jsonl"), plan, job.data, share)
    assert proof.whole_epochs >= 1
    lost = {record.pair_id for record in records}
    visits = [visit for _, step in zip(range(UPDATES), planned_visits(plan, job.data, share), strict=False)
              for visit in step]  # fmt: skip
    trained = {pair_id for _, pair_id in visits} - lost
    assert len(trained) == len(ROWS) - len(REASONS) - len(TIES)
    assert proof.lost == sum(pair_id in lost for _, pair_id in visits)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sum(row["train/pairs"] for row in rows) == proof.pairs - proof.lost
    totals = counts_by_reason(records)
    assert {name.removeprefix("data/quarantined/"): count for name, count in rows[-1].items()
            if name.startswith("data/quarantined/")} == totals  # fmt: skip
    assert rows[-1]["data/quarantined"] == sum(totals.values()) == len(REASONS)
    return totals


def test_each_hostile_row_is_trained_on_or_in_quarantine_and_totals_reach_log_and_mlflow(
    model, tmp_path, capsys, caplog
):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    files = [ASSETS / name for name in HOSTILE]
    assert train.main([*words(model, files), *training(tmp_path / "runs"), f"tracking.uri={uri}"]) == 0
    totals = check_run(tmp_path / "runs" / "run")
    told = ", ".join(f"{reason} {count}" for reason, count in totals.items())
    shown = " ".join(capsys.readouterr().out.split())
    assert f"rows that could not be used: {told}" in shown
    assert f"{len(REASONS)} of {len(ROWS)} rows could not be used: {told}" in caplog.text
    run_id = json.loads((tmp_path / "runs" / "run" / "mlflow.json").read_text())["run_id"]
    logged = MlflowClient(tracking_uri=uri).get_run(run_id).data.metrics
    assert {reason: logged[f"data/quarantined/{reason}"] for reason in totals} == totals
    assert logged["data/quarantined"] == len(REASONS)


def test_a_cache_of_the_hostile_rows_trains_and_loses_the_same(model, tmp_path):
    folder = tmp_path / "cache"
    hostile = [ASSETS / name for name in HOSTILE]
    assert prepare.main([*words(model, hostile), f"cache.folder={folder}", "cache.text=true"]) == 0
    quiet = [*training(tmp_path / "runs"), "tracking.enabled=false"]
    assert train.main([*words(model, [folder]), *quiet]) == 0
    check_run(tmp_path / "runs" / "run")


def check_set(folder: Path, expected: dict) -> dict[str, int]:
    """Hold the quarantine and the totals of a job that makes shards to hostile.json; the totals."""
    records = read_quarantine(folder / "quarantine.parquet")
    assert {(Path(record.file).name, record.row): str(record.reason) for record in records} == expected
    totals = json.loads((folder / "job.json").read_text())["totals"]
    assert totals["in quarantine"] == len(expected)
    left_out = totals.get("ties left out", 0)
    assert totals["made"] + totals["in quarantine"] + left_out == totals["read"] == len(ROWS)
    return totals


def set_words(folder: Path, share: float) -> list[str]:
    paths = ", ".join(str(ASSETS / name) for name in HOSTILE)
    return [f"out={folder}", f"data.paths=[{paths}]", f"data.max_quarantined_share={share}", "cluster.num_workers=0"]


def test_hostile_rows_are_captioned_or_in_quarantine(tmp_path, capsys):
    with chat_server() as server:
        words = ["describe.kind=endpoint", f"describe.base_url={server.base_url}", f"describe.model={server.model}"]
        assert caption.main([*set_words(tmp_path / "made", 0.5), *words]) == 0
        asked = len(server.calls)
        assert caption.main([*set_words(tmp_path / "strict", 0.05), *words]) == 1
        assert len(server.calls) == asked  # labels and captions say it before anything is paid for
    assert "more than max_quarantined_share" in capsys.readouterr().err
    assert check_set(tmp_path / "made", REASONS)["ties left out"] == len(TIES)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the test's scorer is none of AnyScorer
def test_hostile_rows_are_scored_or_in_quarantine_and_need_no_label_for_it(tmp_path):
    def work(name: str, share: float) -> label.LabelJob:
        job = load_config(label.LabelJob, None, [*set_words(tmp_path / name, share), "scorer.kind=shapes"])
        return job.model_copy(update={"scorer": Redness(), "mode": "add_scores"})

    run_shards(label.shard_job(work("made", 0.5)), Console(quiet=True))
    check_set(tmp_path / "made", {place: why for place, why in REASONS.items() if not why.startswith("label_")})
    with pytest.raises(ValueError, match="more than max_quarantined_share"):
        run_shards(label.shard_job(work("strict", 0.1)), Console(quiet=True))


def test_hostile_rows_get_quality_maps_or_are_in_quarantine(tmp_path):
    words = [f"vision.model={make_tiny_vision(tmp_path / 'vision')}", "data.resolution=32", "quality.latent_factor=4"]
    assert patches.main([*set_words(tmp_path / "made", 0.5), *words]) == 0
    check_set(tmp_path / "made", {place: why for place, why in REASONS.items() if not why.startswith("label_")})


def test_hostile_rows_are_downgraded_or_in_quarantine(tmp_path):
    words = [word.replace("data.", "recipe.data.") for word in set_words(tmp_path / "made", 0.5)]
    assert pairs.main(["recipe.kind=downgrade", "recipe.data.resolution=32", *words]) == 0
    records = read_quarantine(tmp_path / "made" / "quarantine.parquet")
    found = {(Path(record.file).name, record.row): str(record.reason) for record in records}
    assert found.items() <= REASONS.items()  # a broken rejected image is not looked at
    check_set(tmp_path / "made", found)


def test_training_stops_when_too_many_of_the_rows_it_reads_are_broken(model, tmp_path, capsys):
    files = [ASSETS / name for name in HOSTILE]
    strict = [*words(model, files), *training(tmp_path / "runs"), "tracking.enabled=false"]
    assert cli.main(["train", *strict, "data.max_quarantined_share=0.1"]) == 1
    assert not (tmp_path / "runs" / "run" / "metrics.jsonl").exists()
    # Labels and captions rule out 6 of 43 rows, images 9 more.
    assert (
        cli.main(
            ["train", *strict, "data.max_quarantined_share=0.15", "loop.max_steps=40", "loop.checkpoint_every=100"]
        )
        == 1
    )
    told = capsys.readouterr().err
    assert told.count("more than max_quarantined_share") == 2
    assert len(read_quarantine(tmp_path / "runs" / "run" / "quarantine.parquet")) == len(REASONS)


def test_a_cache_stays_unfinished_when_too_many_rows_are_broken(model, tmp_path, capsys):
    strict = [*words(model, [ASSETS / name for name in HOSTILE]), f"cache.folder={tmp_path / 'cache'}"]
    assert cli.main(["prepare", *strict, "data.max_quarantined_share=0.15"]) == 1
    assert "15 of 43 rows (34.9%) cannot be used" in capsys.readouterr().err
    assert cli.main(["train", *words(model, [tmp_path / "cache"]), *training(tmp_path / "runs")]) == 1
    assert "is an unfinished latent cache" in capsys.readouterr().err
