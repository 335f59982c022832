"""Validation beside a real training: the same bits with it and without it, and numbers that can be checked by hand."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from rich.console import Console

from dpo_core import randomness
from dpo_core.data.images import ImageLimits, decode, training_crop
from eval.provenance import training_of
from ray_jobs.config import ConfigError, load_config
from ray_jobs.record.run_page import write_page
from ray_jobs.record.run_status import RunStatus
from ray_jobs.train import plan_rows, run_training
from ray_jobs.training.job import TrainJob
from ray_jobs.validation.told import validation_rows
from tests.ray_jobs.jobs import final_weights, write_job
from tests.ray_jobs.validation_jobs import LEVELS, PAIRS, PROMPTS, SEED, STEPS, settings
from tests.train_runs import same


def test_weights_are_the_same_bits_with_validation_and_without(validated, tmp_path, tiny_sd, tiny_pairs):
    plain = run_training(load_config(TrainJob, write_job(tmp_path, tiny_sd, tiny_pairs, steps=STEPS), []))
    assert same(final_weights(validated), final_weights(plain))
    for part in ("unet", "vae"):
        name = f"{part}/diffusion_pytorch_model.safetensors"
        assert (validated / "model" / name).read_bytes() == (plain / "model" / name).read_bytes()


def test_start_weights_and_last_checkpoint_are_always_validated_and_every_other_one_is_accounted_for(validated):
    rows = validation_rows(validated)
    done = [row["step"] for row in rows if "weights" in row]
    left_out = [step for row in rows for step in row.get("left_out", [])]
    assert done[0] == 0
    assert done[-1] == STEPS
    assert sorted(done + left_out) == list(range(STEPS + 1))


def test_the_start_weights_agree_with_themselves_exactly(validated):
    first = validation_rows(validated)[0]
    assert first["validation/implicit_accuracy"] == 0.5
    assert first["validation/margin"] == 0.0
    assert first["validation/chosen_error_vs_reference"] == 0.0
    assert first["validation/pairs"] == PAIRS


@torch.no_grad()
def by_hand(base: Any, tuned: Any, held_out: Path, pair_ids: list[str]) -> dict[str, np.ndarray]:
    """Errors of the exported model and of the base model by diffusers' own parts, ``[levels, pairs]`` each."""
    rows = {str(row["ranking_id"]): row for row in pq.read_table(held_out).to_pylist()}
    errors: dict[str, list[list[float]]] = {name: [] for name in ("chosen", "rejected", "base_chosen", "base_rejected")}
    for level in range(LEVELS):
        found: dict[str, list[float]] = {name: [] for name in errors}
        for pair_id in pair_ids:
            row, draw = rows[pair_id], (SEED, [level], [pair_id])
            tokens = base.tokenizer(row["caption"], padding="max_length", truncation=True, return_tensors="pt")
            text = base.text_encoder(tokens.input_ids)[0]
            share = (level + randomness.uniform(SEED, level, pair_id, "timestep")) / LEVELS
            timestep = torch.tensor([int(1000 * share)])
            noise = randomness.normal((4, 8, 8), *draw, "noise")
            posterior = randomness.normal((2, 4, 8, 8), *draw, "posterior")
            chosen = 0 if row["label_0"] > row["label_1"] else 1
            for side, jpg in enumerate((chosen, 1 - chosen)):
                crop = training_crop(decode(row[f"jpg_{jpg}"], ImageLimits()), 16, x=0.5, y=0.5, flip=False)
                pixels = torch.from_numpy(crop.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
                latents = base.vae.encode(pixels).latent_dist
                sample = (latents.mean + latents.std * posterior[:, side]) * base.vae.config.scaling_factor
                noisy = base.scheduler.add_noise(sample, noise, timestep)
                for kind, pipeline in (("", tuned), ("base_", base)):
                    error = (pipeline.unet(noisy, timestep, text).sample - noise).square().mean().item()
                    found[kind + ("chosen", "rejected")[side]].append(error)
        for name, values in found.items():
            errors[name].append(values)
    return {name: np.array(values) for name, values in errors.items()}


def test_the_last_numbers_are_those_of_the_exported_model_computed_by_hand(validated, tiny_sd, held_out):
    pair_ids = json.loads((validated / "validation" / "pairs.json").read_text())["pair_ids"]
    base, tuned = (StableDiffusionPipeline.from_pretrained(folder) for folder in (tiny_sd, validated / "model"))
    errors = by_hand(base, tuned, held_out, pair_ids)
    chosen, rejected = errors["chosen"] - errors["base_chosen"], errors["rejected"] - errors["base_rejected"]
    margin = rejected - chosen
    row = validation_rows(validated)[-1]
    expected = {
        "implicit_accuracy": ((margin > 0) + 0.5 * (margin == 0)).mean(),
        "margin": margin.mean(),
        "chosen_error": errors["chosen"].mean(),
        "rejected_error": errors["rejected"].mean(),
        "chosen_error_vs_reference": chosen.mean(),
        "rejected_error_vs_reference": rejected.mean(),
    }
    expected |= {f"margin_by_timestep/{level}": margin[level].mean() for level in range(LEVELS)}
    expected |= {f"chosen_error_vs_reference_by_timestep/{level}": chosen[level].mean() for level in range(LEVELS)}
    assert {name: row[f"validation/{name}"] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert abs(expected["margin"]) > 1e-4


def test_pairs_that_are_trained_on_are_left_out_and_counted(validated):
    told = json.loads((validated / "validation" / "pairs.json").read_text())
    assert told["trained_on"] == 4
    assert {int(pair_id) for pair_id in told["pair_ids"]} <= set(range(24, 32))


def test_held_out_pairs_that_are_all_trained_on_are_refused_before_anything_is_trained(tmp_path, tiny_sd, tiny_pairs):
    job = load_config(TrainJob, write_job(tmp_path, tiny_sd, tiny_pairs), settings(tiny_pairs))
    with pytest.raises(ValueError, match=r"all 24 pairs of validation.paths are trained on"):
        run_training(job, Console(quiet=True))
    assert not (tmp_path / "runs" / "run" / "metrics.jsonl").exists()


def test_validation_without_anything_to_do_is_refused(tmp_path, tiny_sd, tiny_pairs):
    with pytest.raises(ConfigError, match="held-out pairs in paths, prompts for sample grids in prompts"):
        load_config(TrainJob, write_job(tmp_path, tiny_sd, tiny_pairs), ["validation.enabled=true"])


def test_images_by_an_ip_adapter_are_refused_before_anything_is_trained(tmp_path, tiny_sd, tiny_pairs, held_out):
    parts = {"model": "adapter.bin", "image_encoder": "encoder"}
    policy = [f"policy={json.dumps({'method': 'ip_adapter', 'ip_adapter': parts})}", "data.prompt_image=true"]
    job = load_config(TrainJob, write_job(tmp_path, tiny_sd, tiny_pairs), [*settings(held_out), *policy])
    with pytest.raises(ValueError, match=r"validation.prompts draws from text alone"):
        run_training(job, Console(quiet=True))


def test_a_dry_run_tells_what_will_be_validated(tmp_path, tiny_sd, tiny_pairs, held_out):
    config = write_job(tmp_path, tiny_sd, tiny_pairs)
    job = load_config(TrainJob, config, [*settings(held_out), "validation.every=500"])
    told = "6 held-out pairs at 5 noise levels and 2 images at every update 500, by a process beside the training"
    assert dict(plan_rows(job))["validation"] == told.replace("update 500", "500 updates")
    assert "validation" not in dict(plan_rows(load_config(TrainJob, config, [])))


def test_every_validated_step_has_images_of_every_prompt_and_a_grid_with_the_start_weights(validated):
    done = [row for row in validation_rows(validated) if "weights" in row]
    for columns, row in zip((1, *[2] * len(done)), done, strict=False):
        folder = validated / "samples" / f"step-{row['step']:08d}"
        assert {Image.open(folder / f"{i:03d}.png").size for i in range(len(PROMPTS))} == {(16, 16)}
        assert row["grid"] == f"samples/step-{row['step']:08d}.png"
        with Image.open(validated / row["grid"]) as grid:
            assert grid.width >= columns * 120
    names = {path.suffix for path in (validated / "samples").rglob("*.*")}
    assert names == {".png"}


def test_numbers_and_grids_reach_mlflow_at_their_steps(validated):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{validated.parents[1] / 'mlflow.db'}")
    run_id = json.loads((validated / "mlflow.json").read_text())["run_id"]
    points = client.get_metric_history(run_id, "validation/implicit_accuracy")
    rows = [row for row in validation_rows(validated) if "weights" in row]
    expected = [(row["step"], row["validation/implicit_accuracy"]) for row in rows]
    assert sorted((point.step, point.value) for point in points) == expected
    names = " ".join(item.path for item in client.list_artifacts(run_id, "images"))
    assert all(f"samples~grid+step+{row['step']}+" in names for row in rows)


def test_the_same_command_again_validates_nothing_twice(validated):
    before = (validated / "validation.jsonl").read_bytes()
    job = load_config(TrainJob, validated / "config.yaml", [])
    run_training(job, Console(quiet=True))
    assert (validated / "validation.jsonl").read_bytes() == before


def test_the_best_checkpoint_is_kept_as_a_model_with_the_number_that_picked_it(validated):
    rows = [row for row in validation_rows(validated) if row.get("weights", "start") != "start"]
    best = max(rows, key=lambda row: row["validation/implicit_accuracy"])
    facts = json.loads((validated / "best" / "provenance.json").read_text())
    (by,) = facts["picked_by"]
    assert (by["name"], by["step"], by["value"]) == (
        "implicit_accuracy", best["step"], best["validation/implicit_accuracy"],
    )  # fmt: skip
    last = json.loads((validated / "model" / "provenance.json").read_text())
    same_facts = ("base_weights_sha256", "data_sha256", "pairs", "config", "base_model")
    assert {name: facts[name] for name in same_facts} == {name: last[name] for name in same_facts}
    assert "picked_by" not in last
    assert training_of(validated / "best").picked_by == ["implicit_accuracy"]
    assert not (validated / "validation" / "model").exists()
    if best["step"] == STEPS:
        name = "unet/diffusion_pytorch_model.safetensors"
        assert (validated / "best" / name).read_bytes() == (validated / "model" / name).read_bytes()


def test_status_and_page_show_the_held_out_numbers_the_best_checkpoint_and_the_newest_grid(validated):
    status = RunStatus.read(validated)
    row, facts = validation_rows(validated)[-1], status.facts()
    assert facts["held out"].startswith(f"update {STEPS}, implicit accuracy {row['validation/implicit_accuracy']:.4g} ")
    assert facts["best"].startswith(f"update {row['validation/best_step']} in best/: implicit accuracy")
    assert facts["samples"] == str(validated / row["grid"])
    page = write_page(status).read_text()
    assert page.count("<svg") == 4
    assert base64.b64encode((validated / row["grid"]).read_bytes()).decode() in page
    assert [page.count(f"<td>{low} to {low + 20} %</td>") for low in range(0, 100, 20)] == [1] * LEVELS
    assert re.findall(r"""(?:src|href)=["'](?!data:|#)""", page) == []
