"""The bench, in this process: every family, averaged weights, cached pairs, made rejected images."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from dpo_core.data.plan import Plan
from ray_jobs.prepare import PrepareJob, prepare
from ray_jobs.training.job import TrainJob
from ray_jobs.validation.bench import Bench
from ray_jobs.validation.grids import draw_grid, draw_samples, folder_of
from ray_jobs.validation.pairs import HeldOut, held_out_data
from tests.tiny_data import make_pairs
from tests.tiny_families import TINY
from tests.tiny_ip_adapter import make_tiny_ip_adapter
from tests.train_runs import make_config, run

CPU = torch.device("cpu")
QUICK = ("sd15", "sd3")
NUMBERS = ("implicit_accuracy", "margin", "chosen_error", "rejected_error")


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_pairs(tmp_path_factory.mktemp("held-out"), 32, shards=1)
    pq.write_table(pq.read_table(folder / "00000.parquet").slice(24), folder / "00000.parquet")
    return folder


def job_of(
    model: Path, pairs: Path, held_out: Path, validation: dict[str, Any] | None = None, **sections: Any
) -> TrainJob:
    loop = {"max_steps": 1, "global_batch_size": 4, "worker_batch_size": 4}
    config = make_config(model, pairs, **{"loop": loop, **sections})
    asked = {"enabled": True, "paths": [str(held_out)], "pairs": 5} | (validation or {})
    return TrainJob.model_validate(config.model_dump() | {"validation": asked})


def bench_of(job: TrainJob) -> Bench:
    plan = Plan.build(held_out_data(job.data, job.validation))
    return Bench(job, HeldOut.choose(plan, Plan.build(job.data), job.validation), CPU)


def cached(model: Path, pairs: Path, folder: Path) -> Path:
    job = {
        "family": {"kind": "sd15", "model": str(model)},
        "data": {"paths": [str(pairs)], "resolution": 16, "min_side": 16},
        "cache": {"folder": str(folder), "dtype": "float32"},
        "cluster": {"num_workers": 0},
    }
    return Path(prepare(PrepareJob.model_validate(job)))


def measured(job: TrainJob) -> dict[str, float]:
    return bench_of(job).measure(lambda pairs: None)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in TINY])
def test_each_family_is_measured_and_draws_from_its_checkpoints(name, tiny_pairs, held_out, tmp_path):
    model = TINY[name](tmp_path / "model-of-the-family")
    sections = {"family": {"kind": name.partition("-")[0], "model": str(model)}, "policy": {"method": "lora"}}
    if name == "sdxl-refiner":
        sections["timesteps"] = {"kind": "uniform", "high": 0.2}
    job = job_of(model, tiny_pairs, held_out, **sections)
    run(job, tmp_path / "run")
    bench = bench_of(job)
    first = bench.measure(lambda pairs: None)
    assert (first["implicit_accuracy"], first["margin"], first["chosen_error_vs_reference"]) == (0.5, 0.0, 0.0)
    bench.put_in(tmp_path / "run" / "checkpoints" / "step-00000001")
    then = bench.measure(lambda pairs: None)
    assert then["margin"] != 0.0
    assert then["chosen_error"] == pytest.approx(first["chosen_error"], rel=0.5)
    if name == "sdxl-refiner":
        return  # it refines images and draws none of its own
    sampler = job.validation.sampler.model_copy(update={"num_inference_steps": 2})
    for step in (0, 1):
        bench.export(tmp_path / f"exported-{step}", step, {})
        folder = tmp_path / folder_of(step)
        draw_samples(tmp_path / f"exported-{step}", str(model), folder, ["a", "b"], 0, sampler, "cpu")
    assert (tmp_path / draw_grid(tmp_path, 1, 0, ["a", "b"])).exists()


def test_the_weights_that_are_judged_are_those_that_are_exported_also_when_they_are_an_average(
    tiny_sd, tiny_pairs, held_out, tmp_path
):
    loop = {"max_steps": 3, "global_batch_size": 4, "worker_batch_size": 4}
    job = job_of(tiny_sd, tiny_pairs, held_out, optim={"lr": 1e-3, "ema_decay": 0.5}, loop=loop)
    last = run(job, tmp_path / "run")
    bench = bench_of(job)
    bench.put_in(tmp_path / "run" / "checkpoints" / "step-00000003")
    exported = load_file(tmp_path / "run" / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    judged = bench.policy.state()
    assert all(torch.equal(judged[name], exported[name]) for name in exported)
    assert not all(torch.equal(judged[name], last[name]) for name in exported)


def test_noise_is_fixed_by_the_seed_alone(tiny_sd, tiny_pairs, held_out):
    once = measured(job_of(tiny_sd, tiny_pairs, held_out))
    other_batches = measured(job_of(tiny_sd, tiny_pairs, held_out, {"batch_size": 2}, loop={"seed": 9}))
    assert {name: other_batches[name] for name in NUMBERS} == pytest.approx({n: once[n] for n in NUMBERS}, rel=1e-5)
    other_seed = measured(job_of(tiny_sd, tiny_pairs, held_out, {"seed": 1}))
    assert abs(other_seed["chosen_error"] - once["chosen_error"]) > 1e-4


def test_cached_pairs_are_measured_as_the_images_are(tiny_sd, tiny_pairs, held_out, tmp_path):
    fresh = measured(job_of(tiny_sd, tiny_pairs, held_out))
    assert measured(job_of(tiny_sd, tiny_pairs, cached(tiny_sd, held_out, tmp_path / "cache"))) == fresh


def test_a_cache_of_what_is_trained_on_is_not_held_out(tiny_sd, tiny_pairs, tmp_path):
    job = job_of(tiny_sd, cached(tiny_sd, tiny_pairs, tmp_path / "cache"), tiny_pairs)
    with pytest.raises(ValueError, match="all 24 pairs"):
        bench_of(job)


@pytest.mark.parametrize("rejected", ["other", "blur", "grid", "noise"])
def test_made_rejected_images_are_held_out_too(rejected, tiny_sd, tiny_pairs, held_out):
    data = {"rejected": rejected}
    given, made = (measured(job_of(tiny_sd, tiny_pairs, held_out, data=d)) for d in ({}, data))
    assert made["pairs"] == 5
    assert made["chosen_error"] == pytest.approx(given["chosen_error"], rel=1e-6)
    assert made["rejected_error"] != given["rejected_error"]


def test_levels_are_equal_parts_of_the_schedule(tiny_sd, tiny_pairs, held_out):
    ten = measured(job_of(tiny_sd, tiny_pairs, held_out, {"levels": 10}))
    assert all(f"margin_by_timestep/{bucket}" in ten for bucket in range(5))
    two = measured(job_of(tiny_sd, tiny_pairs, held_out, {"levels": 2, "pairs": 1}))
    assert sum(key.startswith("margin_by_timestep/") for key in two) == 2


@pytest.mark.slow
def test_an_ip_adapter_is_judged_with_the_images_it_is_shown(tiny_sd, tiny_pairs, held_out, tmp_path):
    unet = UNet2DConditionModel.from_pretrained(tiny_sd, subfolder="unet")
    adapter, encoder = make_tiny_ip_adapter(tmp_path, unet)
    parts = {"model": str(adapter), "image_encoder": str(encoder)}
    policy, data = {"method": "ip_adapter", "ip_adapter": parts}, {"prompt_image": True}
    job = job_of(tiny_sd, tiny_pairs, held_out, policy=policy, data=data)
    run(job, tmp_path / "run")
    bench = bench_of(job)
    assert bench.measure(lambda pairs: None)["margin"] == 0.0
    bench.put_in(tmp_path / "run" / "checkpoints" / "step-00000001")
    assert bench.measure(lambda pairs: None)["margin"] != 0.0
