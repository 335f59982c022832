"""Image prompts: what is trained, that it starts as the reference, and that diffusers loads what is exported."""

import math
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from dpo_core.families import SD15, SDXL
from dpo_core.families.ip_adapter import ADAPTER_FILE, IPAdapterSection
from dpo_core.families.unet import LoadedUNet
from dpo_core.objectives import DPO
from dpo_core.policy import Policy, PolicySection
from dpo_core.step import pair_errors, prepare_denoising
from tests.benchmarks.training_step import latent_batch
from tests.tiny_families import TINY
from tests.tiny_ip_adapter import make_tiny_ip_adapter

CPU = torch.device("cpu")
KINDS = {"sd15": SD15, "sdxl": SDXL}


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    """The config of a family, an IP-Adapter-Plus and a plain IP-Adapter for it, and the vision model."""
    folder = tmp_path_factory.mktemp(request.param)
    config = KINDS[request.param](model=str(TINY[request.param](folder / "model")))
    unet = config.load(CPU, "fp32").denoiser
    plain, _ = make_tiny_ip_adapter(folder / "plain", unet, plus=False)
    plus, vision = make_tiny_ip_adapter(folder / "plus", unet)
    return config, plus, plain, vision


def policy_of(config: Any, adapter: Any, vision: Any, precision: Any = "fp32", **fields: Any) -> Policy:
    section = IPAdapterSection(model=str(adapter), image_encoder=str(vision), **fields)
    config = config.load(CPU, precision)
    return Policy(PolicySection(method="ip_adapter", ip_adapter=section), config, CPU, precision, 0, True)


def batch_of():
    batch = latent_batch(2, (4, 8, 8))
    generator = torch.Generator().manual_seed(0)
    batch.prompt_image = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=generator)
    return batch


def prediction(policy: Policy, model: Any = None) -> torch.Tensor:
    noisy = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    conditioning, _ = policy.condition(batch_of(), 2)
    with torch.no_grad():
        return policy.family.predict(model or policy.model, noisy, torch.tensor([5, 100, 500, 900]), conditioning)


def stir(policy: Policy) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_policy_equal_to_reference_gives_log_two_and_gradients_reach_keys_and_values_alone(model, precision):
    config, plus, _, vision = model
    policy, objective = policy_of(config, plus, vision, precision), DPO(beta=5000.0)
    output = objective(pair_errors(policy, objective, prepare_denoising(policy, objective, batch_of(), seed=0)))
    assert output.margin is not None
    assert output.margin.tolist() == [0.0, 0.0]
    assert output.loss.tolist() == pytest.approx([math.log(2)] * 2, abs=1e-6)
    output.loss.sum().backward()
    trained = policy.named_parameters()
    assert trained
    assert all(".attn2.processor.to_k_ip." in name or ".attn2.processor.to_v_ip." in name for name in trained)
    assert all(parameter.dtype == torch.float32 for parameter in trained.values())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in trained.values())
    frozen = {p.dtype for name, p in policy.model.named_parameters() if name not in trained}
    assert frozen == {torch.bfloat16 if precision == "bf16" else torch.float32}


def test_the_resampler_is_trained_when_asked_for(model):
    config, plus, plain, vision = model
    with_it, without = (
        policy_of(config, plus, vision, resampler=wanted).named_parameters() for wanted in (True, False)
    )
    more = with_it.keys() - without.keys()
    assert more
    assert all(name.startswith("encoder_hid_proj.") for name in more)
    with pytest.raises(ValueError, match=r"policy\.ip_adapter\.resampler: .* has no resampler"):
        policy_of(config, plain, vision, resampler=True)


@pytest.mark.parametrize(("kind", "resampler"), [("plus", False), ("plus", True), ("plain", False)])
def test_diffusers_loads_what_is_exported_and_predicts_as_the_policy(model, tmp_path, kind, resampler):
    config, plus, plain, vision = model
    policy = policy_of(config, plus if kind == "plus" else plain, vision, resampler=resampler)
    start = prediction(policy)
    stir(policy)
    expected = prediction(policy)
    assert (expected - start).abs().max() > 1e-3
    policy.family.export(tmp_path, torch.float32, lora=False)
    pipeline: Any = DiffusionPipeline.from_pretrained(config.model)
    pipeline.load_ip_adapter(str(tmp_path), subfolder="", weight_name=ADAPTER_FILE, image_encoder_folder=None)
    torch.testing.assert_close(prediction(policy, pipeline.unet), expected, rtol=1e-5, atol=1e-5)


def test_an_untouched_adapter_is_exported_as_it_was_read(model, tmp_path):
    config, plus, _, vision = model
    for resampler in (False, True):
        policy_of(config, plus, vision, resampler=resampler).family.export(tmp_path, torch.float32, lora=False)
        written, read = load_file(tmp_path / ADAPTER_FILE), load_file(plus)
        assert written.keys() == read.keys()
        assert all(torch.equal(written[name], read[name]) for name in read)


@pytest.mark.parametrize("kind", ["plus", "plain"])
def test_image_prompts_are_told_as_diffusers_own_pipeline_tells_them(model, kind):
    config, plus, plain, vision = model
    file = plus if kind == "plus" else plain
    policy = policy_of(config, file, vision)
    assert isinstance(policy.family, LoadedUNet)
    pipeline: Any = DiffusionPipeline.from_pretrained(config.model)
    place = {"subfolder": "", "weight_name": file.name, "image_encoder_folder": None}
    pipeline.load_ip_adapter(str(file.parent), **place)
    assert policy.family.image_prompt is not None
    pipeline.register_modules(image_encoder=policy.family.image_prompt.encoder)
    images = batch_of().prompt_image
    assert images is not None
    shown = torch.cat([images[:1], torch.zeros_like(images[:1])])
    picture = images[0].permute(1, 2, 0).numpy()
    expected, unconditional = pipeline.encode_image(
        pipeline.feature_extractor([picture], return_tensors="pt").pixel_values, CPU, 1, kind == "plus"
    )
    embedded = policy.family.embed_images(shown)
    torch.testing.assert_close(embedded[0], expected.view_as(embedded[0]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embedded[1], unconditional.view_as(embedded[1]), rtol=1e-4, atol=1e-5)


def test_an_image_prompt_does_not_depend_on_the_batch_it_is_in(model):
    config, plus, _, vision = model
    family = policy_of(config, plus, vision).family
    images = batch_of().prompt_image
    assert isinstance(family, LoadedUNet)
    assert images is not None
    assert torch.equal(family.embed_images(images)[1:], family.embed_images(images[1:]))


def test_what_is_no_adapter_for_the_model_is_refused_by_name(model, tmp_path):
    config, plus, _, vision = model
    odd = tmp_path / "odd.safetensors"
    save_file({"unet.to_q.lora_A.weight": torch.zeros(1)}, odd)
    state = load_file(plus)
    shrunk = tmp_path / "shrunk.safetensors"
    save_file(
        {name: tensor[:, :4].contiguous() if "to_k_ip" in name else tensor for name, tensor in state.items()}, shrunk
    )
    for adapter, why in (
        ("adapter.bin", "not a safetensors file"),
        (tmp_path / "none.safetensors", "cannot be loaded"),
        (odd, "not an IP-Adapter"),
        (shrunk, "does not fit the U-Net"),
    ):
        with pytest.raises(ValueError, match=rf"policy\.ip_adapter\.model: .*{why}"):
            policy_of(config, adapter, vision)
    with pytest.raises(ValueError, match=r"policy\.ip_adapter\.image_encoder: .*nowhere.* cannot be loaded"):
        policy_of(config, plus, tmp_path / "nowhere")
    policy = policy_of(config, plus, vision)
    with pytest.raises(ValueError, match="needs data with image prompts"):
        policy.condition(latent_batch(2, (4, 8, 8)), 2)
