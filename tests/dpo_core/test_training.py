import json
from tests.tiny_data import make_pairs
import math
from tests.tiny_data import make_pairs
from pathlib import Path
from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs
import pytest
from tests.tiny_data import make_pairs
import torch
from tests.tiny_data import make_pairs
from safetensors.torch import load_file
from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs
from dpo_core.checkpoint import load_latest
from tests.tiny_data import make_pairs
from dpo_core.context import LocalContext
from tests.tiny_data import make_pairs
from dpo_core.data.batches import step_batches
from tests.tiny_data import make_pairs
from dpo_core.data.plan import Plan
from tests.tiny_data import make_pairs
from dpo_core.metrics import read_complete_rows
from tests.tiny_data import make_pairs
from dpo_core.recipe import TrainSection
from tests.tiny_data import make_pairs
from dpo_core.training import train
from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs
def config_of(model: Path, pairs: Path, **overrides) -> TrainSection:
from tests.tiny_data import make_pairs
    loop = {"max_steps": 4, "global_batch_size": 8, "worker_batch_size": 8, "log_every": 1, "checkpoint_every": 2}
from tests.tiny_data import make_pairs
    given = {
from tests.tiny_data import make_pairs
        "family": {"kind": "sd15", "model": str(model)},
from tests.tiny_data import make_pairs
        "objective": {"kind": "dpo", "beta": 500.0},
from tests.tiny_data import make_pairs
        "data": {"paths": [str(pairs)], "resolution": 16, "min_side": 16},
from tests.tiny_data import make_pairs
        "optim": {"lr": 1e-3},
from tests.tiny_data import make_pairs
        "loop": loop,
from tests.tiny_data import make_pairs
    }
from tests.tiny_data import make_pairs
    for name, value in overrides.items():
from tests.tiny_data import make_pairs
        section, field = name.split("__")
from tests.tiny_data import make_pairs
        given.setdefault(section, {})[field] = value
from tests.tiny_data import make_pairs
    return TrainSection.model_validate(given)
from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs
def run(config: TrainSection, folder: Path) -> dict[str, torch.Tensor]:
from tests.tiny_data import make_pairs
    """Train in ``folder`` and return the final weights."""
from tests.tiny_data import make_pairs
    folder.mkdir(exist_ok=True)
from tests.tiny_data import make_pairs
    plan, context = Plan.build(config.data), LocalContext(folder, "cpu")
from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs
    def batches(start: int):
from tests.tiny_data import make_pairs
        return step_batches(plan, config.data, config.loop.share(context), start)
from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs
    train(config, context, plan, batches, name="test")
from tests.tiny_data import make_pairs
    saved = load_latest(folder / "checkpoints")
from tests.tiny_data import make_pairs
    assert saved is not None
from tests.tiny_data import make_pairs
    return saved.weights
from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs
def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
from tests.tiny_data import make_pairs
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs
@pytest.mark.parametrize("method", ["full", "lora"])
from tests.tiny_data import make_pairs
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
from tests.tiny_data import make_pairs
def test_policy_equal_to_reference_gives_log_two_at_the_first_step(tiny_sd, tiny_pairs, tmp_path, method, precision):
from tests.tiny_data import make_pairs
    config = config_of(
from tests.tiny_data import make_pairs
        tiny_sd,
from tests.tiny_data import make_pairs
        tiny_pairs,
from tests.tiny_data import make_pairs
        policy__method=method,
from tests.tiny_data import make_pairs
        loop__precision=precision,
from tests.tiny_data import make_pairs
        loop__max_steps=1,
from tests.tiny_data import make_pairs
        objective__beta=5000.0,
from tests.tiny_data import make_pairs
    )
from tests.tiny_data import make_pairs
    run(config, tmp_path)
from tests.tiny_data import make_pairs
    first = read_complete_rows(tmp_path / "metrics.jsonl")[0]
from tests.tiny_data import make_pairs
    assert first["train/loss"] == pytest.approx(math.log(2), abs=1e-6)
from tests.tiny_data import make_pairs
    assert abs(first["train/margin"]) < 0.02
from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs
@pytest.mark.parametrize("method", ["full", "lora"])
from tests.tiny_data import make_pairs
def test_a_run_stopped_and_resumed_ends_with_the_bits_of_one_never_stopped(tiny_sd, tiny_pairs, tmp_path, method):
from tests.tiny_data import make_pairs
    straight = run(config_of(tiny_sd, tiny_pairs, policy__method=method), tmp_path / "straight")
from tests.tiny_data import make_pairs
    run(config_of(tiny_sd, tiny_pairs, policy__method=method, loop__max_steps=2), tmp_path / "stopped")
from tests.tiny_data import make_pairs
    resumed = run(config_of(tiny_sd, tiny_pairs, policy__method=method), tmp_path / "stopped")
from tests.tiny_data import make_pairs
    assert same(straight, resumed)
from tests.tiny_data import make_pairs
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("straight", "stopped")]
from tests.tiny_data import make_pairs
    rows = [[{k: v for k, v in json.loads(line).items() if k != "time"} for line in part] for part in lines]
from tests.tiny_data import make_pairs
    assert rows[0] == rows[1]
from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs
def test_accumulating_one_pair_at_a_time_gives_the_update_of_the_whole_batch(tiny_sd, tiny_pairs, tmp_path):
from tests.tiny_data import make_pairs
    whole = run(config_of(tiny_sd, tiny_pairs, loop__max_steps=1, loop__checkpoint_every=1), tmp_path / "whole")
from tests.tiny_data import make_pairs
    config = config_of(tiny_sd, tiny_pairs, loop__max_steps=1, loop__checkpoint_every=1, loop__worker_batch_size=1)
from tests.tiny_data import make_pairs
    pieces = run(config, tmp_path / "pieces")
from tests.tiny_data import make_pairs
    metrics = [read_complete_rows(tmp_path / name / "metrics.jsonl")[0] for name in ("whole", "pieces")]
from tests.tiny_data import make_pairs
    assert metrics[0]["train/grad_norm"] == pytest.approx(metrics[1]["train/grad_norm"], rel=1e-4)
from tests.tiny_data import make_pairs
    close = [torch.isclose(whole[n], pieces[n], atol=1e-4).float().mean().item() for n in whole]
from tests.tiny_data import make_pairs
    assert sum(close) / len(close) > 0.99
from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs
def test_the_reference_of_a_resumed_run_is_the_start_and_not_the_checkpoint(tiny_sd, tiny_pairs, tmp_path):
from tests.tiny_data import make_pairs
    run(config_of(tiny_sd, tiny_pairs, loop__max_steps=2), tmp_path)
from tests.tiny_data import make_pairs
    run(config_of(tiny_sd, tiny_pairs, loop__max_steps=3), tmp_path)
from tests.tiny_data import make_pairs
    after = read_complete_rows(tmp_path / "metrics.jsonl")[2]
from tests.tiny_data import make_pairs
    assert after["train/margin"] != 0.0
from tests.tiny_data import make_pairs
    assert abs(after["train/loss"] - math.log(2)) > 1e-3
from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs
def test_training_lowers_the_loss_and_raises_the_margin(tiny_sd, tiny_pairs, tmp_path):
from tests.tiny_data import make_pairs
    config = config_of(tiny_sd, tiny_pairs, loop__max_steps=30, loop__checkpoint_every=30, objective__beta=50.0)
from tests.tiny_data import make_pairs
    run(config, tmp_path)
from tests.tiny_data import make_pairs
    last = read_complete_rows(tmp_path / "metrics.jsonl")[-6:]
from tests.tiny_data import make_pairs
    assert sum(row["train/loss"] for row in last) / 6 < math.log(2)
from tests.tiny_data import make_pairs
    assert sum(row["train/margin"] for row in last) / 6 > 0
from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs
def test_sft_trains_on_the_chosen_image_and_loads_no_reference(tiny_sd, tiny_pairs, tmp_path):
from tests.tiny_data import make_pairs
    config = config_of(tiny_sd, tiny_pairs).model_dump() | {"objective": {"kind": "sft"}}
from tests.tiny_data import make_pairs
    run(TrainSection.model_validate(config), tmp_path)
from tests.tiny_data import make_pairs
    rows = read_complete_rows(tmp_path / "metrics.jsonl")
from tests.tiny_data import make_pairs
    assert rows[0]["train/loss"] == rows[0]["train/chosen_error"]
from tests.tiny_data import make_pairs
    assert "train/margin" not in rows[0]
from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs
def test_the_logged_learning_rate_is_the_one_that_the_update_was_made_with(tiny_sd, tiny_pairs, tmp_path):
from tests.tiny_data import make_pairs
    config = config_of(tiny_sd, tiny_pairs, optim__warmup_steps=2, loop__checkpoint_every=4)
from tests.tiny_data import make_pairs
    run(config, tmp_path)
from tests.tiny_data import make_pairs
    logged = [row["train/lr"] for row in read_complete_rows(tmp_path / "metrics.jsonl")]
from tests.tiny_data import make_pairs
    assert logged == pytest.approx([0, 0.0005, 0.001, 0.001])
from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs
def test_a_run_that_skipped_all_its_updates_says_that_it_learned_nothing(tiny_sd, tiny_pairs, tmp_path, caplog):
from tests.tiny_data import make_pairs
    # The first scales of half precision overflow at this beta, and two updates are too few to find a smaller one.
from tests.tiny_data import make_pairs
    config = config_of(tiny_sd, tiny_pairs, loop__precision="fp16", loop__max_steps=2, loop__checkpoint_every=2)
from tests.tiny_data import make_pairs
    run(config, tmp_path)
from tests.tiny_data import make_pairs
    assert "2 of 2 updates left out, their gradient was not finite; the model is the one that" in caplog.text
from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs
def test_a_changed_learning_rate_is_refused_on_resume_and_named(tiny_sd, tiny_pairs, tmp_path):
from tests.tiny_data import make_pairs
    run(config_of(tiny_sd, tiny_pairs, loop__max_steps=2), tmp_path)
from tests.tiny_data import make_pairs
    with pytest.raises(ValueError, match=r"optim\.lr was 0\.001, now 0\.002"):
from tests.tiny_data import make_pairs
        run(config_of(tiny_sd, tiny_pairs, optim__lr=2e-3), tmp_path)
from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs
def test_the_exported_pipeline_loads_in_diffusers_and_holds_the_trained_weights(tiny_sd, tmp_path):
from tests.tiny_data import make_pairs
    pairs = make_pairs(tmp_path / "pairs", 24)
from tests.tiny_data import make_pairs
    (pairs / "job.json").write_text('{"report": {"labelled_by": ["hpsv2/hpsv2"]}}')
from tests.tiny_data import make_pairs
    weights = run(config_of(tiny_sd, pairs), tmp_path)
from tests.tiny_data import make_pairs
    exported = load_file(tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors")
from tests.tiny_data import make_pairs
    assert same(weights, {name: exported[name] for name in weights})
from tests.tiny_data import make_pairs
    provenance = json.loads((tmp_path / "model" / "provenance.json").read_text())
from tests.tiny_data import make_pairs
    assert provenance["steps"] == 4
from tests.tiny_data import make_pairs
    assert provenance["pairs"] == 24
from tests.tiny_data import make_pairs
    assert provenance["labelled_by"] == ["hpsv2/hpsv2"]
from tests.tiny_data import make_pairs
    assert provenance["kind"] == "pipeline"
from tests.tiny_data import make_pairs
    assert "0.001" in (tmp_path / "model" / "README.md").read_text()
from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs
def test_the_exported_adapter_changes_the_prediction_of_the_base_as_the_policy_does(tiny_sd, tiny_pairs, tmp_path):
from tests.tiny_data import make_pairs
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs
    run(config_of(tiny_sd, tiny_pairs, policy__method="lora"), tmp_path)
from tests.tiny_data import make_pairs
    base = StableDiffusionPipeline.from_pretrained(tiny_sd)
from tests.tiny_data import make_pairs
    noisy, text = torch.randn(1, 4, 8, 8), torch.randn(1, 16, 16)
from tests.tiny_data import make_pairs
    with torch.no_grad():
from tests.tiny_data import make_pairs
        before = base.unet(noisy, 5, encoder_hidden_states=text).sample
from tests.tiny_data import make_pairs
        base.load_lora_weights(tmp_path / "model")
from tests.tiny_data import make_pairs
        after = base.unet(noisy, 5, encoder_hidden_states=text).sample
from tests.tiny_data import make_pairs
    assert not torch.allclose(before, after)
from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs
def test_a_model_that_is_not_there_is_named_with_what_is_allowed(tiny_pairs, tmp_path):
from tests.tiny_data import make_pairs
    with pytest.raises(ValueError, match=r"family\.model: .*nowhere.*Allowed"):
from tests.tiny_data import make_pairs
        run(config_of(tmp_path / "nowhere", tiny_pairs), tmp_path / "run")
from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs

from tests.tiny_data import make_pairs
def test_checkpoints_between_log_rows_are_refused():
from tests.tiny_data import make_pairs
    with pytest.raises(ValueError, match="must be a multiple of log_every"):
from tests.tiny_data import make_pairs
        TrainSection.model_validate({"loop": {"log_every": 10, "checkpoint_every": 15}})
from tests.tiny_data import make_pairs
