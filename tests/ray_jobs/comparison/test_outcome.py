"""What a comparison leaves in MLflow, against a real store."""

from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from PIL import Image

from eval.comparison import Comparison
from ray_jobs.comparison.outcome import difference_columns, note_metrics, record, register, results_tables
from ray_jobs.record.tracking import TrackingSection, track_run
from tests.eval.test_verdict import BOTH, PLAN, compared

NAME = "palate-test"


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def client(storage) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{storage / 'mlflow.db'}")


@pytest.fixture(scope="module")
def better(storage) -> Comparison:
    found = compared(BOTH)
    for row in found.scores:
        if row["prompt_index"] >= 16 or row["prompt_set"] != "one":
            continue  # not shown
        file = storage / "first" / row["file"]
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(file, "PNG")
    return found


def keep(comparison: Comparison, out: Path) -> None:
    (out / "report.json").write_text("{}")
    with track_run(TrackingSection(uri=f"sqlite:///{out.parent / 'mlflow.db'}"), out) as tracker:
        note_metrics(comparison, out / "metrics.jsonl")
        record(comparison, tracker, out)
        register(comparison, tracker, out, NAME, {name: f"/models/{name}" for name in comparison.models})


def champion(client: MlflowClient):
    try:
        return client.get_model_version_by_alias(NAME, "champion")
    except MlflowException:
        return None


def test_a_champion_is_named_only_when_it_is_shown_to_be_better(client, storage, better, capfd):
    out = storage / "first"
    unclear = compared({"dpo": {"pickscore": 0.05}})
    keep(unclear, out)
    assert {version.tags["model"] for version in client.search_model_versions(f"name = '{NAME}'")} == {"sft", "dpo"}
    assert champion(client) is None
    keep(better, out)
    won = champion(client)
    assert won is not None
    assert won.tags["model"] == "dpo"
    assert won.tags["folder"] == "/models/dpo"
    assert float(won.tags["low"]) > 0
    count = len(client.search_model_versions(f"name = '{NAME}'"))
    capfd.readouterr()
    keep(better, out)
    assert "artifacts" not in capfd.readouterr().err, "MLflow draws no bars into what a verb prints"
    assert len(client.search_model_versions(f"name = '{NAME}'")) == count, "the same result again is no new version"
    run = client.get_run(won.run_id)
    assert run.data.metrics["eval/pickscore/dpo/win_rate"] == better.difference("dpo").win_rate
    assert {"eval/two/pickscore/dpo/delta", "eval/pickscore/dpo/vs_sft/delta"} <= set(run.data.metrics)
    artifacts = {item.path for item in client.list_artifacts(won.run_id)} | {
        item.path for item in client.list_artifacts(won.run_id, "eval")
    }
    assert {"report.json", "eval/images.json", "eval/differences.json", "models"} <= artifacts


def test_metric_names_hold_only_what_mlflow_takes(tmp_path):
    named = replace(better := compared(BOTH), levels=[replace(better.levels[0], metric="a (b+c)/d")])
    note_metrics(named, tmp_path / "metrics.jsonl")
    assert "eval/a _b_c_/d/base/mean" in (tmp_path / "metrics.jsonl").read_text()


def test_tables_name_every_contrast(better):
    columns = difference_columns(better)
    assert len(columns["model"]) == len(better.differences) == 2 * 2 * 3
    assert set(columns["against"]) == {"base", "sft"}
    assert [table.row_count for table in results_tables(better)] == [6, 6]
    assert PLAN.control == "sft"
