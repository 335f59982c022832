"""The record of a run, against real MLflow stores."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from ray_jobs.record.tracking import Tracker, TrackingSection, flat, track_run, tracking_uri
from tests.dpo_core.test_checkpoint import disk_of
from tests.fault_table import attempt
from tests.mlflow_servers import LONGEST_S, free_port, log_step, mlflow_server, notes, timed

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def run_dir(storage: Path, request: pytest.FixtureRequest) -> Path:
    folder = storage / request.node.name
    folder.mkdir()
    return folder


@pytest.fixture
def client(storage: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return MlflowClient(tracking_uri=f"sqlite:///{storage / 'mlflow.db'}")


def history(client: MlflowClient, run_dir: Path, name: str) -> list[tuple[int, float, int]]:
    run_id = json.loads((run_dir / "mlflow.json").read_text())["run_id"]
    return sorted((point.step, point.value, point.timestamp) for point in client.get_metric_history(run_id, name))


def test_metrics_params_and_status_reach_the_store(client: MlflowClient, run_dir: Path) -> None:
    config = {"optim": {"lr": 1e-8, "name": "adamw"}, "objective": {"beta": 5000.0}, "paths": []}
    with track_run(TrackingSection(tags={"team": "red"}), run_dir, name="first", config=config) as tracker:
        for step in range(5):
            log_step(run_dir, step, loss=0.5 + step)
        run_id = tracker.wait_for_run_id(120)
    assert run_id is not None
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "first"
    assert run.data.tags["team"] == "red"
    assert run.data.params["optim.lr"] == "1e-08"
    assert run.data.params["log10_lr"] == "-8.0000"
    assert run.data.params["log10_beta"] == "3.6990"
    expected = [(step, 0.5 + step, 1_700_000_000_500 + 1000 * step) for step in range(5)]
    assert history(client, run_dir, "train/loss") == expected


def test_run_started_again_continues_the_same_mlflow_run(client: MlflowClient, run_dir: Path) -> None:
    ids = []
    for start in (0, 3):
        with track_run(TrackingSection(), run_dir, config={"loop": {"max_steps": start + 3}}) as tracker:
            for step in range(start, start + 3):
                log_step(run_dir, step, loss=float(step))
            ids.append(tracker.wait_for_run_id(120))
    assert ids[0] == ids[1]
    assert [step for step, _, _ in history(client, run_dir, "train/loss")] == list(range(6))
    run = client.get_run(ids[0])
    assert run.data.params["loop.max_steps"] == "3"
    assert run.data.tags["changed.loop.max_steps"] == "6"


def test_lost_state_repeats_lines_without_doubling_points(client: MlflowClient, run_dir: Path) -> None:
    with track_run(TrackingSection(), run_dir):
        log_step(run_dir, 1, loss=1.0)
    state = json.loads((run_dir / "mlflow.json").read_text())
    state["metrics"] = {"offset": 0, "mark": ""}
    (run_dir / "mlflow.json").write_text(json.dumps(state))
    with track_run(TrackingSection(), run_dir):
        log_step(run_dir, 2, loss=2.0)
    assert [step for step, _, _ in history(client, run_dir, "train/loss")] == [1, 2]


def test_metrics_file_cut_back_to_a_checkpoint_is_followed(client: MlflowClient, run_dir: Path) -> None:
    with track_run(TrackingSection(), run_dir):
        for step in range(4):
            log_step(run_dir, step, loss=1.0)
    kept = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)[:2]
    (run_dir / "metrics.jsonl").write_text("".join(kept))
    with track_run(TrackingSection(), run_dir):
        for step in range(2, 6):
            log_step(run_dir, step, loss=1.0)
    assert [step for step, _, _ in history(client, run_dir, "train/loss")] == list(range(6))


def test_infinite_value_is_left_out_and_counted_and_nan_is_kept(client: MlflowClient, run_dir: Path) -> None:
    with track_run(TrackingSection(), run_dir):
        log_step(run_dir, 1, loss=float("inf"), margin=float("-inf"), accuracy=0.5)
        log_step(run_dir, 2, loss=float("nan"), accuracy=0.75)
    assert [value for _, value, _ in history(client, run_dir, "tracking/infinite_values")] == [2.0]
    assert [step for step, _, _ in history(client, run_dir, "train/loss")] == [2]
    assert [value for _, value, _ in history(client, run_dir, "train/accuracy")] == [0.5, 0.75]


def test_images_tables_and_files_become_artifacts(client: MlflowClient, run_dir: Path) -> None:
    (run_dir / "report.html").write_text("<p>fine</p>")
    with track_run(TrackingSection(), run_dir) as tracker:
        tracker.log_image(Image.new("RGB", (8, 8), "red"), key="samples/grid", step=7)
        tracker.log_table(
            {"prompt": ["a", "b"], "image": [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]}, "eval/compare.json"
        )
        tracker.log_artifact(run_dir / "report.html", folder="eval")
        tracker.log_artifact(run_dir / "never-written.txt")
        run_id = tracker.wait_for_run_id(120)
    assert run_id is not None
    images = [item.path for item in client.list_artifacts(run_id, "images")]
    assert any(path.startswith("images/samples~grid+step+7+") and path.endswith(".png") for path in images)
    assert {item.path for item in client.list_artifacts(run_id, "eval")} == {"eval/compare.json", "eval/report.html"}
    table = json.loads(Path(client.download_artifacts(run_id, "eval/compare.json")).read_text())
    assert [row[table["columns"].index("prompt")] for row in table["data"]] == ["a", "b"]
    assert "never-written.txt is gone" in json.loads((run_dir / "mlflow.json").read_text())["refused"][0]


def test_refused_metric_name_does_not_hold_up_the_others(
    client: MlflowClient, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with track_run(TrackingSection(), run_dir):
        log_step(run_dir, 1, **{"lo$$": 1.0, "loss": 2.0})
        log_step(run_dir, 2, **{"lo$$": 1.0, "loss": 3.0})
    assert [value for _, value, _ in history(client, run_dir, "train/loss")] == [2.0, 3.0]
    assert "refused 1 things, first metric train/lo$$" in capsys.readouterr().err


def test_samples_of_the_machine_reach_the_store_under_the_names_of_its_charts(
    client: MlflowClient, run_dir: Path
) -> None:
    (run_dir / "tracking").mkdir()
    line = {"step": 3, "time": 1_700_000_000.5, "system/cpu_utilization_percentage": 12.5}
    (run_dir / "tracking" / "system.jsonl").write_text(json.dumps(line) + "\n")
    with track_run(TrackingSection(), run_dir):
        pass
    assert history(client, run_dir, "system/cpu_utilization_percentage") == [(3, 12.5, 1_700_000_000_500)]


def test_error_ends_the_run_as_failed_and_passes_through(client: MlflowClient, run_dir: Path) -> None:
    with pytest.raises(ZeroDivisionError), track_run(TrackingSection(), run_dir):
        raise ZeroDivisionError
    run_id = json.loads((run_dir / "mlflow.json").read_text())["run_id"]
    assert client.get_run(run_id).info.status == "FAILED"


def test_trial_is_nested_below_its_sweep(client: MlflowClient, storage: Path, run_dir: Path) -> None:
    (storage / "trial").mkdir()
    with track_run(TrackingSection(), run_dir) as sweep:
        parent = sweep.wait_for_run_id(120)
        with track_run(TrackingSection(), storage / "trial", parent_run_id=parent) as trial:
            child = trial.wait_for_run_id(120)
    assert child is not None
    assert client.get_run(child).data.tags["mlflow.parentRunId"] == parent


def test_deleted_mlflow_run_is_replaced_and_gets_everything(client: MlflowClient, run_dir: Path) -> None:
    with track_run(TrackingSection(), run_dir) as tracker:
        log_step(run_dir, 1, loss=1.0)
        first = tracker.wait_for_run_id(120)
    assert first is not None
    client.delete_run(first)
    with track_run(TrackingSection(), run_dir):
        log_step(run_dir, 2, loss=2.0)
    assert [step for step, _, _ in history(client, run_dir, "train/loss")] == [1, 2]


def test_tracking_switched_off_writes_nothing(run_dir: Path) -> None:
    with track_run(TrackingSection(enabled=False), run_dir, config={"a": 1}) as tracker:
        tracker.log_image(Image.new("RGB", (2, 2)), key="x", step=0)
        assert tracker.wait_for_run_id() is None
    assert list(run_dir.iterdir()) == []


def test_unreachable_server_costs_training_no_time(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    section = TrackingSection(uri=f"http://127.0.0.1:{free_port()}")
    tracker = Tracker(section, run_dir)
    started = time.monotonic()
    for step in range(100):
        log_step(run_dir, step, loss=1.0)
        tracker.log_params({"a": step})
    assert time.monotonic() - started < 2
    assert not tracker.finish(patience_s=1)
    assert "203 lines were not delivered" in capsys.readouterr().err


def test_full_disk_neither_holds_up_the_end_nor_hides_its_error(
    client: MlflowClient, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail_on_a_full_disk() -> None:
        with track_run(TrackingSection(system_metrics=False), run_dir) as tracker:
            assert tracker.wait_for_run_id(120)
            with disk_of(100):  # less than the outbox and the state hold already
                log_step(run_dir, 1, loss=1.0)
                end = time.monotonic() + 60
                while not tracker.in_trouble:
                    assert time.monotonic() < end
                    time.sleep(0.1)
                tracker.set_tags({"colour": "red"})
            # From here on only the database has room; delivering to it without keeping how far is no progress.
            (run_dir / f"mlflow.json.{os.getpid()}.part").unlink(missing_ok=True)
            (run_dir / f"mlflow.json.{os.getpid()}.part").symlink_to("/dev/full")
            took.append(time.monotonic())
            raise ZeroDivisionError

    took: list[float] = []
    with pytest.raises(ZeroDivisionError):
        fail_on_a_full_disk()
    assert time.monotonic() - took[0] < 30
    said = capsys.readouterr().err
    assert "1 things could not be noted for MLflow, first tags: [Errno 27]" in said
    assert "Traceback" not in said


def test_store_is_the_one_named_then_the_environment_then_beside_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(TrackingSection(), tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://a.test")
    assert tracking_uri(TrackingSection(), tmp_path) == "http://a.test"
    assert tracking_uri(TrackingSection(uri="http://b.test"), tmp_path) == "http://b.test"


def test_flat_config_has_dotted_names() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": None}) == {"a.b": "1", "a.c": "{}", "d": "None"}


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[[int], None]]:
    """Starts ``mlflow server`` on a loopback port and waits until it answers."""
    with ExitStack() as servers:
        yield lambda port: servers.enter_context(mlflow_server(tmp_path, port))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_what_a_dead_server_missed_is_delivered_when_it_is_back(
    tmp_path: Path, start_server: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    port, run_dir = free_port(), tmp_path / "run"
    run_dir.mkdir()
    section = TrackingSection(uri=f"http://127.0.0.1:{port}")
    with attempt("MLflow server down", "everything is delivered when it is back") as figures:
        made: list[Tracker] = []
        figures.longest_wait = timed([lambda: made.append(Tracker(section, run_dir))])
        (tracker,) = made
        figures.longest_wait = max(figures.longest_wait, timed(notes(tracker, run_dir, range(20)), pause_s=0.2))
        assert figures.longest_wait < LONGEST_S
        assert not tracker.finish(patience_s=1)

        start_server(port)
        back = time.monotonic()
        with track_run(section, run_dir, config={"a": 1}) as tracker:
            log_step(run_dir, 20, loss=20.0)
            run_id = tracker.wait_for_run_id(60)
        figures.seconds = time.monotonic() - back
        client = MlflowClient(tracking_uri=section.uri)
        assert run_id is not None
        assert [step for step, _, _ in history(client, run_dir, "train/loss")] == list(range(21))
        assert client.get_run(run_id).info.status == "FINISHED"
        names = " ".join(item.path for item in client.list_artifacts(run_id, "images"))
        assert all(f"samples~grid+step+{step}+" in names for step in range(20))
