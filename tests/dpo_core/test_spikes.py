import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo_core.checkpoint import load_checkpoint
from dpo_core.metrics import read_complete_rows
from dpo_core.recipe import TrainSection
from dpo_core.resume import refuse_changed_maths
from dpo_core.spikes import SpikeFile, SpikeGuard
from tests.fault_table import attempt
from tests.tiny_data import make_pairs
from tests.train_runs import make_config, rows, run, run_ranks, same

STEPS = 12
FACTOR = 10.0


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """48 pairs, one of which asks for a gradient ten thousand times as large, and its id."""
    folder = make_pairs(tmp_path_factory.mktemp("poisoned"), 48, grid=8)
    file = folder / "00001.parquet"
    table = pq.read_table(file)
    rows = table.to_pylist()
    rows[20]["patch_quality_1"] = [[1e4] * 8] * 8
    rows[20]["patch_quality_0"] = [[1e4] * 8] * 8
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file, row_group_size=4)
    return folder, str(rows[20]["ranking_id"])


def config_of(model: Path, pairs: Path, **loop: Any) -> TrainSection:
    given = {"max_steps": STEPS, "global_batch_size": 4, "worker_batch_size": 2, "checkpoint_every": 1}
    given |= {"keep_checkpoints": STEPS, "spike_factor": FACTOR, "spike_window": 4}
    return make_config(
        model, pairs, objective={"kind": "patchdpo"}, data={"quality": True}, optim={"lr": 1e-4}, loop=given | loop
    )


def spikes(folder: Path) -> list[dict[str, Any]]:
    return read_complete_rows(folder / "spikes.jsonl")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, tiny_sd, poisoned):
    folder = tmp_path_factory.mktemp("guarded")
    return folder, run(config_of(tiny_sd, poisoned[0]), folder)


@attempt("pair with ten thousand times the gradient", "left out on every rank, counted, its ids written down")
def test_the_update_with_a_poisoned_pair_is_left_out_and_its_pairs_are_written_down(guarded, poisoned):
    folder, _ = guarded
    (found,) = spikes(folder)
    assert poisoned[1] in found["pair_ids"]
    assert len(found["pair_ids"]) == 4
    assert found["grad_norm"] > 100 * found["median"]
    counted = [row["train/spikes"] for row in rows(folder)]
    assert counted == [int(row["step"] >= found["update"]) for row in rows(folder)]
    before, after = (
        load_checkpoint(folder / "checkpoints" / f"step-{found['update'] - back:08d}").weights for back in (1, 0)
    )
    assert same(before, after)


def test_without_a_guard_the_same_pair_moves_the_weights(tiny_sd, poisoned, guarded, tmp_path):
    update = spikes(guarded[0])[0]["update"]
    run(config_of(tiny_sd, poisoned[0], spike_factor=None), tmp_path)
    before, after = (load_checkpoint(tmp_path / "checkpoints" / f"step-{update - back:08d}").weights for back in (1, 0))
    assert not same(before, after)
    assert not (tmp_path / "spikes.jsonl").exists()
    assert "train/spikes" not in rows(tmp_path)[-1]


@pytest.mark.parametrize(
    "after_the_spike", [0, pytest.param(-1, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow)]
)
def test_a_run_that_goes_on_judges_as_one_that_was_never_stopped(tiny_sd, poisoned, guarded, tmp_path, after_the_spike):
    folder, weights = guarded
    stop = spikes(folder)[0]["update"] + after_the_spike
    run(config_of(tiny_sd, poisoned[0], max_steps=stop), tmp_path)
    assert same(weights, run(config_of(tiny_sd, poisoned[0]), tmp_path))
    assert rows(tmp_path) == rows(folder)
    assert (tmp_path / "spikes.jsonl").read_text() == (folder / "spikes.jsonl").read_text()


def test_two_ranks_leave_out_the_same_update_as_one(tiny_sd, poisoned, guarded, tmp_path):
    run_ranks(config_of(tiny_sd, poisoned[0]), tmp_path, 2)
    (alone,), (shared,) = spikes(guarded[0]), spikes(tmp_path)
    assert (alone["update"], sorted(alone["pair_ids"])) == (shared["update"], sorted(shared["pair_ids"]))


def test_too_many_spikes_in_a_row_end_the_run_with_the_pairs_named(tiny_sd, tiny_pairs, tmp_path):
    config = make_config(
        tiny_sd, tiny_pairs,
        loop={"spike_factor": 1.0000001, "spike_window": 2, "max_skipped_in_a_row": 0, "max_steps": 20},
    )  # fmt: skip
    with pytest.raises(ValueError, match="not finite or a spike in 1 updates in a row"):
        run(config, tmp_path)
    assert json.loads((tmp_path / "not_finite.json").read_text())["pair_ids"]


def test_a_level_that_has_risen_for_good_becomes_the_new_one():
    guard = SpikeGuard(10.0, 4)
    assert [guard.judge(norm) for norm in (1, 1.2, 0.9, 50)] == [False] * 4  # the window was not full
    assert [guard.judge(norm) for norm in (30, 1, 30, 30, 30, 30)] == [True, False, False, False, False, False]
    assert guard.count == 1


def test_a_guard_goes_on_from_its_state_with_the_same_judgements():
    norms = [1.0, 2.0, 1.5, 40.0, 1.0, 90.0, 2.0, 30.0]
    straight, stopped = SpikeGuard(5.0, 3), SpikeGuard(5.0, 3)
    expected = [straight.judge(norm) for norm in norms]
    first = [stopped.judge(norm) for norm in norms[:4]]
    resumed = SpikeGuard(5.0, 3)
    resumed.load_state(json.loads(json.dumps(stopped.state())))
    assert first + [resumed.judge(norm) for norm in norms[4:]] == expected
    assert resumed.state() == straight.state()
    assert True in expected


def test_a_window_that_nothing_looks_at_may_differ_from_the_saved_one():
    refuse_changed_maths({"loop": {"spike_factor": None}}, {"loop": {"spike_factor": None, "spike_window": 50}})
    with pytest.raises(ValueError, match=r"loop\.spike_window was 50, now 20"):
        refuse_changed_maths(
            {"loop": {"spike_factor": 10.0, "spike_window": 50}}, {"loop": {"spike_factor": 10.0, "spike_window": 20}}
        )


def test_a_line_of_the_spike_file_that_a_crash_cut_short_is_written_again(tmp_path):
    path = tmp_path / "spikes.jsonl"
    SpikeFile(path).append(3, 9.0, 1.0, ["a"])
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:10])
    again = SpikeFile(path)
    again.append(3, 9.0, 1.0, ["a"])
    again.append(4, 8.0, 1.0, ["b"])
    assert [row["update"] for row in read_complete_rows(path)] == [3, 4]
