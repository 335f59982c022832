"""Every row of the hostile files, through `palate train` and `palate prepare` and back out of their records."""

import json
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from dpo_core.data.plan import Plan
from dpo_core.data.quarantine import counts_by_reason, read_quarantine
from dpo_core.ledger import check_ledger, planned_visits, read_ledger
from ray_jobs import prepare, train
from ray_jobs.config import load_config
from tests.tiny_models import make_tiny_sd

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
