import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline, calculate_shift
from peft import LoraConfig

from dpo_core.families import Flux
from dpo_core.families.flux import LoadedFlux, pack, positions, unpack
from dpo_core.noising import RectifiedFlow, SizeShift
from dpo_core.objectives import DPO
from dpo_core.policy import Policy, PolicySection
from dpo_core.randomness import uniform
from dpo_core.step import prepare_denoising
from tests.benchmarks.training_step import latent_batch
from tests.tiny_flow_models import T5_WIDTH, make_tiny_flux

CPU = torch.device("cpu")
NOWHERE = torch.zeros(2, 6, dtype=torch.int32)


@pytest.fixture(scope="module")
def dev(tmp_path_factory) -> str:
    return str(make_tiny_flux(tmp_path_factory.mktemp("dev"), guidance=True))


@pytest.fixture(scope="module")
def schnell(tmp_path_factory) -> str:
    return str(make_tiny_flux(tmp_path_factory.mktemp("schnell"), guidance=False))


def load(model: str, **fields: Any) -> LoadedFlux:
    fields.setdefault("t5_max_length", 12)
    return Flux(model=model, **fields).load(CPU, "fp32")


def predict(family: LoadedFlux) -> torch.Tensor:
    told = family.condition(["a cat"], NOWHERE[:1])
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return family.predict(family.denoiser, noisy, torch.tensor([400.0]), told)


def test_packing_is_undone_by_unpacking_and_is_that_of_diffusers():
    latents = torch.randn(2, 4, 6, 10)
    packed = pack(latents)
    assert packed.shape == (2, 15, 16)
    assert torch.equal(packed, FluxPipeline._pack_latents(latents, 2, 4, 6, 10))
    assert torch.equal(unpack(packed, 3, 5), latents)


def test_a_packed_token_is_a_square_of_latents_by_hand():
    latents = torch.arange(2 * 2 * 4).reshape(1, 2, 2, 4).float()
    assert pack(latents).tolist() == [[[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]]
    assert positions(1, 2, CPU).tolist() == [[0, 0, 0], [0, 0, 1]]


def test_the_guidance_that_dev_is_told_changes_what_it_predicts(dev):
    assert not torch.equal(predict(load(dev)), predict(load(dev, guidance_scale=3.5)))


def test_schnell_is_told_no_guidance(schnell):
    assert torch.equal(predict(load(schnell)), predict(load(schnell, guidance_scale=3.5)))


def test_the_shift_of_dev_by_hand():
    shift = SizeShift()
    assert shift(32, 32) == pytest.approx(math.exp(0.5))
    assert shift(128, 128) == pytest.approx(math.exp(1.15))
    # 512 pixels: 64 x 64 latents, 1024 patches, a fifth of the way from 256 to 4096.
    assert shift(64, 64) == pytest.approx(math.exp(0.5 + 0.65 * 768 / 3840))
    assert shift(128, 64) == shift(64, 128) == pytest.approx(math.exp(0.5 + 0.65 * 1792 / 3840))


def test_the_noise_levels_of_dev_are_those_of_its_own_scheduler(dev):
    scheduler: Any = DiffusionPipeline.from_pretrained(dev).scheduler
    sigmas = np.array([0.9, 0.5, 0.1])
    for height, width in ((8, 8), (16, 12)):
        mu = calculate_shift((height // 2) * (width // 2), 4, 64, 0.5, 1.15)
        scheduler.set_timesteps(sigmas=sigmas, mu=mu)
        ours = load(dev).noising.at_size(height, width).timesteps_at(torch.from_numpy(sigmas))
        torch.testing.assert_close(ours, scheduler.timesteps, rtol=1e-5, atol=1e-3)


def test_a_step_shifts_its_timesteps_by_the_size_of_its_latents(dev):
    family = load(dev)
    policy = Policy(PolicySection(), family, CPU, "fp32", 0, True)
    for side, patches in ((4, 4), (8, 16), (16, 64)):
        given = prepare_denoising(policy, DPO(), latent_batch(1, (4, side, side)), seed=5)
        share, shift = uniform(5, 0, "0", "timestep"), math.exp(0.5 + 0.65 * (patches - 4) / 60)
        expected = 1000 * shift * share / (1 + (shift - 1) * share)
        assert given.timesteps.tolist() == pytest.approx([expected, expected])


def test_a_shift_of_the_config_holds_for_every_size(dev, schnell):
    assert load(dev, shift=2.0).noising == RectifiedFlow(2.0)
    assert load(dev, shift=2.0).noising.at_size(64, 64) == RectifiedFlow(2.0)
    assert load(schnell).noising == RectifiedFlow(1.0)


def test_without_t5_no_t5_is_loaded_and_the_text_is_zeros(dev):
    family, whole = load(dev, t5=False), load(dev)
    told, expected = (one.condition(["a cat", "a dog"], NOWHERE) for one in (family, whole))
    assert family.parts["text_encoder_2"] is None
    assert torch.equal(told["text"], torch.zeros(2, 12, T5_WIDTH))
    assert torch.equal(told["pooled"], expected["pooled"])
    assert not torch.equal(told["pooled"][0], told["pooled"][1])


def test_a_pipeline_trained_without_t5_is_exported_with_it_since_diffusers_needs_it(dev, tmp_path):
    load(dev, t5=False).export(tmp_path, torch.float32, lora=False)
    pipeline: Any = DiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline("a cat", height=16, width=16, num_inference_steps=1, output_type="pt").images
    assert images.isfinite().all()


def test_adapters_of_clip_are_trained_through_and_reload_exactly(dev, tmp_path):
    family = load(dev)
    plain = family.condition(["a cat"], NOWHERE[:1])
    torch.manual_seed(3)
    (clip,) = family.text_encoders
    clip.add_adapter(  # pyright: ignore[reportCallIssue]
        LoraConfig(r=2, lora_alpha=5, init_lora_weights=False, target_modules=["q_proj", "v_proj"]), "default"
    )
    told = family.condition(["a cat"], NOWHERE[:1], remember=False)
    told["pooled"].square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for name, p in clip.named_parameters() if "lora_A" in name)
    assert not told["text"].requires_grad
    assert not torch.equal(told["pooled"], plain["pooled"])

    family.export(tmp_path, torch.float32, lora=True)
    pipeline: Any = DiffusionPipeline.from_pretrained(dev)
    pipeline.load_lora_weights(tmp_path)
    _, pooled, _ = pipeline.encode_prompt("a cat", max_sequence_length=12)
    torch.testing.assert_close(pooled, told["pooled"], rtol=0, atol=1e-6)
