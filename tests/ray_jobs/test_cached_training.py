"""Training from a latent cache ends with the bits of training from the images."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_core.recipe import TrainSection
from ray_jobs.prepare import PrepareJob, prepare
from tests.tiny_data import make_pairs
from tests.tiny_families import TINY
from tests.train_runs import make_config, rows, run, same

FLIPPED = {"flip": "independent", "caption_dropout": 0.3}


def cached(config: TrainSection, folder: Path, **cache: Any) -> TrainSection:
    """The same run, on a cache made for it."""
    job = PrepareJob.model_validate(
        {
            "family": config.family,
            "data": config.data,
            "cache": {"folder": str(folder), "shard_pairs": 8, **cache},
            "cluster": {"num_workers": 0},
        }
    )
    prepare(job)
    return config.model_copy(update={"data": config.data.model_copy(update={"paths": [str(folder)]})})


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("pairs"), 12, grid=8)


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd3", "flux", "auraflow"])
def test_training_from_a_cache_with_text_and_flips_ends_with_the_same_bits(kind, pairs, tmp_path, monkeypatch):
    model = TINY[kind](tmp_path / "model")
    config = make_config(
        model, pairs, family={"kind": kind}, data={**FLIPPED, "captions": "per_image"}, loop={"max_steps": 3}
    )
    expected = run(config, tmp_path / "images")
    on_cache = cached(config, tmp_path / "cache", flips=True, text=True)
    loaded: list[Any] = []
    load = type(config.family).load
    monkeypatch.setattr(type(config.family), "load", lambda *args: loaded.append(load(*args)) or loaded[-1])
    found = run(on_cache, tmp_path / "latents")
    assert same(expected, found)
    assert rows(tmp_path / "images") == rows(tmp_path / "latents")
    (family,) = loaded
    parts = [part for name, part in family.parts.items() if name.startswith("text_encoder")]
    assert set(parts) == {None}
    assert any(isinstance(part, torch.nn.Module) for part in family.parts.values())


@pytest.mark.parametrize("t5", [True, False])
@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_text_states_stand_in_for_t5_and_for_its_absence(kind, t5, pairs, tmp_path):
    model = TINY[kind](tmp_path / "model")
    config = make_config(model, pairs, family={"kind": kind, "t5": t5}, loop={"max_steps": 1})
    expected = run(config, tmp_path / "images")
    assert same(expected, run(cached(config, tmp_path / "cache", text=True), tmp_path / "latents"))


def test_trained_text_encoders_are_loaded_though_the_cache_has_their_states(pairs, tmp_path):
    model = TINY["sd15"](tmp_path / "model")
    lora = {"method": "lora", "text_encoder": True}
    config = make_config(model, pairs, policy=lora, loop={"max_steps": 2})
    expected = run(config, tmp_path / "images")
    assert same(expected, run(cached(config, tmp_path / "cache", text=True), tmp_path / "latents"))


def test_half_precision_trains_the_same_bits_when_the_encoders_ran_in_it(pairs, tmp_path):
    model = TINY["sd15"](tmp_path / "model")
    config = make_config(model, pairs, loop={"max_steps": 2, "precision": "bf16"})
    expected = run(config, tmp_path / "images")
    on_cache = cached(config, tmp_path / "cache", text=True, precision="bf16")
    assert same(expected, run(on_cache, tmp_path / "latents"))
