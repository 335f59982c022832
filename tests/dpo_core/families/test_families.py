"""What holds for every family: one tiny random model of each goes through training's whole interface."""

import math
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from diffusers import DiffusionPipeline
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid

from dpo_core.data.batches import PairBatch
from dpo_core.families import AnyFamily, Family, LoadedFamily
from dpo_core.families.lora_files import COMFY_FILE, DIFFUSERS_FILE
from dpo_core.objectives import DPO
from dpo_core.policy import Policy, PolicySection
from dpo_core.step import pair_errors, prepare_denoising
from tests.benchmarks.training_step import latent_batch
from tests.tiny_families import TINY

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tiny-models")
    return {name: make(folder / name) for name, make in TINY.items()}


def config_of(name: str, model: Path) -> Family:
    return TypeAdapter(AnyFamily).validate_python({"kind": name.split("-")[0], "model": str(model)})


@pytest.fixture(params=TINY)
def config(request, tiny_models) -> Family:
    return config_of(request.param, tiny_models[request.param])


@pytest.fixture
def loaded(config) -> LoadedFamily:
    return config.load(CPU, "fp32")


def pixels(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def geometry(count: int) -> torch.Tensor:
    return torch.tensor([[20 + i, 30, i, 2, 16, 16] for i in range(count)], dtype=torch.int32)


def latents(loaded: LoadedFamily, count: int, seed: int = 0) -> torch.Tensor:
    shape = loaded.encode_images(pixels(1))[0].shape[1:]
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(seed))


def batch_of(loaded: LoadedFamily) -> PairBatch:
    channels, height, width = latents(loaded, 1).shape[1:]
    return latent_batch(2, (channels, height, width))


def policy_of(loaded: LoadedFamily, precision: Any = "fp32", **section: Any) -> Policy:
    return Policy(PolicySection(**section), loaded, CPU, precision, seed=0, needs_reference=True)


def stir(policy: Policy) -> None:
    """Move every trainable weight, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def call(loaded: LoadedFamily, denoiser: torch.nn.Module, told: dict[str, torch.Tensor]) -> torch.Tensor:
    noisy = latents(loaded, 2)
    timesteps = loaded.noising.at_size(*noisy.shape[-2:]).timesteps_at(torch.tensor([0.05, 0.15]).double())
    with torch.no_grad():
        return loaded.predict(denoiser, noisy, timesteps, told)


def test_the_posterior_is_that_of_the_models_own_autoencoder(config, loaded):
    mean, std = loaded.encode_images(pixels(2))
    pipeline: Any = DiffusionPipeline.from_pretrained(config.model)
    with torch.no_grad():
        expected = pipeline.vae.encode(pixels(2).float() / 127.5 - 1).latent_dist
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(mean, expected.mean)
    torch.testing.assert_close(std, expected.std)


def test_the_posterior_of_an_image_does_not_depend_on_the_batch_it_is_in(loaded):
    together = loaded.encode_images(pixels(5))
    for place in range(5):
        alone = loaded.encode_images(pixels(5)[place : place + 1].to(memory_format=torch.channels_last))
        assert all(torch.equal(one[0], all_of_them[place]) for one, all_of_them in zip(alone, together, strict=True))


def test_conditioning_of_a_caption_does_not_depend_on_the_batch_it_is_in(loaded):
    captions = ["a red cat", "", "a much longer caption of a red cat", "a red cat"]
    together = loaded.condition(captions, geometry(4))
    assert {len(rows) for rows in together.values()} == {4}
    for place in (2, 0):
        alone = loaded.condition(captions[place : place + 1], geometry(4)[place : place + 1], remember=False)
        assert alone.keys() == together.keys()
        assert all(torch.equal(alone[name][0], together[name][place]) for name in alone)


def test_the_prediction_has_the_latents_shape_and_reads_the_caption(loaded):
    one = call(loaded, loaded.denoiser, loaded.condition(["a red cat"] * 2, geometry(2)))
    other = call(loaded, loaded.denoiser, loaded.condition(["blue dogs"] * 2, geometry(2)))
    assert one.shape == latents(loaded, 2).shape
    assert not torch.equal(one, other)


def test_every_lora_target_is_found_in_the_denoiser(loaded):
    policy = policy_of(loaded, method="lora")
    layers = {name.partition(".lora_A.")[0] for name in policy.named_parameters() if ".lora_A." in name}
    for target in loaded.lora_targets:
        assert any(layer.endswith(f".{target}") for layer in layers), target


METHODS = {
    "full": {"method": "full"},
    "lora": {"method": "lora", "rank": 4, "alpha": 11.0},
    "dora": {"method": "lora", "rank": 4, "alpha": 11.0, "dora": True},
    "text": {"method": "lora", "rank": 4, "alpha": 11.0, "text_encoder": True},
}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("method", METHODS)
def test_policy_equal_to_reference_gives_log_two(config, method, precision):
    loaded = config.load(CPU, precision)
    if method == "text" and not loaded.text_encoders:
        pytest.skip("no text encoder takes adapters")
    policy, objective = policy_of(loaded, precision, **METHODS[method]), DPO(beta=5000.0)
    errors = pair_errors(policy, objective, prepare_denoising(policy, objective, batch_of(loaded), seed=0))
    output = objective(errors)
    assert output.margin is not None
    assert output.margin.abs().max() < 0.02
    assert output.loss.tolist() == pytest.approx([math.log(2)] * 2, abs=1e-6)
    output.loss.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.parameters())


def test_the_loss_after_an_update_is_minus_log_sigmoid_of_the_four_errors(loaded):
    policy, objective = policy_of(loaded, **METHODS["lora"]), DPO(beta=100.0)
    stir(policy)
    denoising = prepare_denoising(policy, objective, batch_of(loaded), seed=0)
    output = objective(pair_errors(policy, objective, denoising))
    errors = []
    for predict in (policy.predict, policy.predict_reference):
        with torch.no_grad():
            prediction = predict(denoising.noisy, denoising.timesteps, denoising.conditioning)
        errors.append((prediction - denoising.target).square().flatten(1).mean(1).view(2, 2))
    inside = -50.0 * ((errors[0][0] - errors[0][1]) - (errors[1][0] - errors[1][1]))
    torch.testing.assert_close(output.loss.detach(), -logsigmoid(inside), rtol=1e-4, atol=1e-5)
    assert inside.abs().max() > 1e-3


def test_a_full_export_is_a_pipeline_that_holds_the_policy_and_generates(loaded, tmp_path):
    policy = policy_of(loaded, method="full")
    stir(policy)
    loaded.export(tmp_path, torch.float32, lora=False)
    pipeline: Any = DiffusionPipeline.from_pretrained(tmp_path)
    denoiser = getattr(pipeline, "transformer", None) or pipeline.unet
    state = denoiser.state_dict()
    assert all(torch.equal(state[name], value) for name, value in policy.state().items())
    pipeline.set_progress_bar_config(disable=True)
    start = {"image": torch.rand(1, 3, 16, 16)} if "Img2Img" in type(pipeline).__name__ else {"height": 16, "width": 16}
    image = pipeline("a red cat", num_inference_steps=4, output_type="np", **start).images[0]
    assert image.shape == (16, 16, 3)
    assert math.isfinite(image.sum())


def reload(config: Family, source: Any, **which: Any) -> Any:
    pipeline: Any = DiffusionPipeline.from_pretrained(config.model)
    pipeline.load_lora_weights(source, **which)
    return pipeline


@pytest.mark.parametrize("method", ["lora", "dora", "text"])
def test_a_lora_export_reloads_to_the_policys_prediction_and_would_not_without_its_alpha(
    config, loaded, tmp_path, method
):
    if method == "text" and not loaded.text_encoders:
        pytest.skip("no text encoder takes adapters")
    before = call(loaded, loaded.denoiser, loaded.condition(["a red cat", ""], geometry(2)))
    policy = policy_of(loaded, **METHODS[method])
    stir(policy)
    told = loaded.condition(["a red cat", ""], geometry(2), remember=False)
    expected = call(loaded, loaded.denoiser, told)
    loaded.export(tmp_path, torch.float32, lora=True)

    # A fresh copy of the family with the reloaded networks in place of its own: captions go through them too.
    trials = {"diffusers": (tmp_path, {}), "trap": (load_file(tmp_path / DIFFUSERS_FILE), {})}
    if method != "dora" and config.kind in ("sd15", "sdxl"):
        trials["comfy"] = (tmp_path, {"weight_name": COMFY_FILE})
    distance = {}
    for name, (source, which) in trials.items():
        pipeline, fresh = reload(config, source, **which), config.load(CPU, "fp32")
        if method == "text":
            encoders = [part for part in (getattr(pipeline, f"text_encoder{i}", None) for i in ("", "_2")) if part]
            fresh.text_encoders = tuple(encoders[: len(loaded.text_encoders)])
        denoiser = getattr(pipeline, "transformer", None) or pipeline.unet
        found = call(fresh, denoiser, fresh.condition(["a red cat", ""], geometry(2)))
        distance[name] = (found - expected).abs().max()
    effect = (before - expected).abs().max()
    assert effect > 1e-4
    assert distance.pop("trap") > 0.05 * effect
    assert all(value < 2e-3 * effect for value in distance.values()), (effect, distance)


def test_a_model_of_another_family_and_a_folder_without_a_model_are_named_in_one_sentence(
    config, tiny_models, tmp_path
):
    other = tiny_models["sdxl" if config.kind != "sdxl" else "sd15"]
    for folder in (other, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"family\.model: .*Allowed") as caught:
            config.model_copy(update={"model": str(folder)}).load(CPU, "fp32")
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)


OTHERS = [(kind, other) for kind in ("sd15", "sdxl", "sd3", "flux", "auraflow") for other in TINY]


@pytest.mark.parametrize(("kind", "other"), [pair for pair in OTHERS if not pair[1].startswith(pair[0])])
def test_a_model_of_another_family_is_refused_before_its_weights_are_read(tiny_models, kind: str, other: str):
    family = config_of(kind, tiny_models[other])
    with (
        patch("diffusers.DiffusionPipeline.from_pretrained", side_effect=AssertionError),
        pytest.raises(
            ValueError, match=r"^family\.model: .*(is not of the family|cannot be loaded as a \w+Pipeline: its)"
        ),
    ):
        family.load(CPU, "fp32")


def test_a_denoiser_of_another_family_is_refused(tiny_models):
    family = config_of("flux", tiny_models["flux"]).model_copy(update={"denoiser": str(tiny_models["sd3"])})
    with pytest.raises(
        ValueError, match=r"family\.denoiser: .* is a SD3Transformer2DModel, but a FluxPipeline has a Flux"
    ):
        family.load(CPU, "fp32")


@pytest.mark.parametrize(("kind", "other"), [("sd15", "sd3"), ("sdxl", "sd3"), ("sd3", "sdxl")])
def test_an_autoencoder_of_other_channels_is_refused_and_not_met_in_the_first_update(
    tiny_models, kind: str, other: str
):
    family = config_of(kind, tiny_models[kind]).model_copy(update={"vae": str(tiny_models[other])})
    with pytest.raises(
        ValueError, match=r"family\.vae: .* makes latents of (4|16) channels, the denoiser takes (4|16)"
    ):
        family.load(CPU, "fp32")


@pytest.mark.parametrize("field", ["vae", "denoiser"])
def test_a_part_that_is_not_there_is_named(tiny_models, field: str):
    family = config_of("sd15", tiny_models["sd15"]).model_copy(update={field: "/no/such/folder"})
    with pytest.raises(
        ValueError, match=rf"family\.{field}: '/no/such/folder' cannot be loaded: there is no such folder"
    ):
        family.load(CPU, "fp32")
