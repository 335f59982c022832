"""What holds for every family with a diffusion transformer and a rectified flow."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid

from dpo_core.data.batches import PairBatch
from dpo_core.families import SD3, AuraFlow, Flux
from dpo_core.families.lora_files import COMFY_FILE
from dpo_core.families.transformer import LoadedFlow
from dpo_core.objectives import DPO
from dpo_core.policy import Policy, PolicySection
from dpo_core.step import pair_errors, prepare_denoising
from tests.benchmarks.training_step import latent_batch
from tests.tiny_flow_models import make_tiny_auraflow, make_tiny_flux, make_tiny_sd3

CPU = torch.device("cpu")
MODELS: dict[str, tuple[Any, Any, dict[str, Any], dict[str, Any]]] = {
    "sd3": (SD3, make_tiny_sd3, {"dual": False}, {"t5_max_length": 12}),
    "sd3.5": (SD3, make_tiny_sd3, {"dual": True}, {"t5_max_length": 12}),
    "sd3 without t5": (SD3, make_tiny_sd3, {}, {"t5": False, "t5_max_length": 12}),
    "flux dev": (Flux, make_tiny_flux, {"guidance": True}, {"t5_max_length": 12, "guidance_scale": 3.5}),
    "flux schnell": (Flux, make_tiny_flux, {"guidance": False}, {"t5_max_length": 12}),
    "auraflow": (AuraFlow, make_tiny_auraflow, {}, {"max_length": 12}),
}


@pytest.fixture(scope="module", params=MODELS)
def config(request, tmp_path_factory):
    """The config of a family and its tiny model on disk."""
    family, make, variant, fields = MODELS[request.param]
    return family(model=str(make(tmp_path_factory.mktemp("model"), **variant)), **fields)


@pytest.fixture
def loaded(config) -> LoadedFlow:
    return config.load(CPU, "fp32")


def shape(family: LoadedFlow) -> tuple[int, int, int]:
    return family.images.vae.config.latent_channels, 8, 8


def batch_of(family: LoadedFlow, pairs: int = 2) -> PairBatch:
    return latent_batch(pairs, shape(family))


def stir(module: torch.nn.Module, only: str = "", by: float = 0.05) -> None:
    """Move the weights whose name has ``only`` in it, so that they are not what they were loaded as."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if only in name:
                parameter.add_(by * torch.randn(parameter.shape, generator=generator))


def test_the_prediction_is_the_call_that_diffusers_own_pipeline_makes(config, loaded):
    without: dict[str, Any] = {} if getattr(config, "t5", True) else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline: Any = DiffusionPipeline.from_pretrained(config.model, **without)
    pipeline.set_progress_bar_config(disable=True)
    calls: list[Any] = []
    pipeline.transformer.register_forward_hook(
        lambda module, args, given, output: calls.append(
            ({"hidden_states": args[0]} if args else {}) | given | {"out": output[0]}
        ),
        with_kwargs=True,
    )
    guidance = 3.5 if isinstance(config, Flux) else 1.0
    pipeline(
        "a red cat", height=16, width=24, num_inference_steps=1, sigmas=[0.6], guidance_scale=guidance,
        generator=torch.Generator().manual_seed(0), output_type="latent", max_sequence_length=12,
    )  # fmt: skip
    (call,) = calls
    if isinstance(config, Flux):
        call |= {name: FluxPipeline._unpack_latents(call[name], 16, 24, 2) for name in ("hidden_states", "out")}
    assert call["hidden_states"].shape[2:] == (8, 12)
    told = loaded.condition(["a red cat"], torch.zeros(1, 6, dtype=torch.int32))
    torch.testing.assert_close(told["text"], call["encoder_hidden_states"], rtol=0, atol=1e-6)
    if "pooled" in told:
        torch.testing.assert_close(told["pooled"], call["pooled_projections"], rtol=0, atol=1e-6)
    timesteps = pipeline.scheduler.timesteps.float()
    assert 600 <= timesteps.item() < 1000
    with torch.no_grad():
        ours = loaded.predict(loaded.denoiser, call["hidden_states"], timesteps, told)
    torch.testing.assert_close(ours, call["out"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_policy_equal_to_reference_has_no_margin(config, precision, method):
    family = config.load(CPU, precision)
    policy = Policy(PolicySection(method=method), family, CPU, precision, 0, True)
    objective = DPO(beta=5000)
    output = objective(pair_errors(policy, objective, prepare_denoising(policy, objective, batch_of(family), 0)))
    assert output.margin is not None
    assert output.margin.abs().max() < 0.02
    torch.testing.assert_close(output.loss, torch.full((2,), 0.6931472))


def test_noisy_latents_lie_on_the_straight_line_from_latents_to_the_noise_of_the_pair(loaded):
    batch = batch_of(loaded)
    assert batch.posterior is not None
    batch.posterior[:, :, 1] = 0.0
    policy = Policy(PolicySection(), loaded, CPU, "fp32", 0, True)
    given = prepare_denoising(policy, DPO(), batch, seed=0)
    vae = loaded.images.vae.config
    x = (batch.posterior[:, :, 0].transpose(0, 1).flatten(0, 1) - (vae.shift_factor or 0)) * vae.scaling_factor
    sigma = given.timesteps[:, None, None, None] / 1000
    noise = given.target + x
    torch.testing.assert_close(given.noisy, (1 - sigma) * x + sigma * noise)
    torch.testing.assert_close(noise[:2], noise[2:])
    assert torch.equal(given.timesteps[:2], given.timesteps[2:])
    assert given.timesteps[0] != given.timesteps[1]
    assert noise[0].mean().abs() < 0.3
    assert 0.8 < noise[0].std() < 1.2


def test_the_loss_is_flow_dpo_of_velocity_errors(loaded):
    """-log sigmoid(-(beta/2)(|v_w - v_theta|^2 - |v_w - v_ref|^2 - |v_l - v_theta|^2 + |v_l - v_ref|^2)).

    Liu et al., arXiv 2501.13918, the Flow-DPO loss with constant beta; |.|^2 is the mean over elements here.
    """
    policy = Policy(PolicySection(), loaded, CPU, "fp32", 0, True)
    stir(policy.model)
    given = prepare_denoising(policy, DPO(), batch_of(loaded), seed=0)
    ours = DPO(beta=300.0)(pair_errors(policy, DPO(), given))
    assert policy.frozen is not None
    expected = []
    with torch.no_grad():
        for pair in range(2):
            errors = []
            for image in (pair, 2 + pair):
                told = {name: value[image : image + 1] for name, value in given.conditioning.items()}
                noisy, timestep = given.noisy[image : image + 1], given.timesteps[image : image + 1]
                for network in (policy.model, policy.frozen):
                    velocity = loaded.predict(network, noisy, timestep, told)[0]
                    errors.append((velocity - given.target[image]).double().pow(2).mean())
            chosen, chosen_reference, rejected, rejected_reference = errors
            expected.append(-logsigmoid(-150.0 * (chosen - chosen_reference - rejected + rejected_reference)))
    assert (torch.stack(expected) - 0.693).abs().min() > 1e-3
    torch.testing.assert_close(ours.loss.double(), torch.stack(expected), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_few_updates_lower_the_loss_and_checkpointing_changes_none(config, method):
    losses: list[list[float]] = []
    for checkpointing in (False, True):
        family = config.load(CPU, "fp32")
        section = PolicySection(method=method, gradient_checkpointing=checkpointing)
        policy = Policy(section, family, CPU, "fp32", 0, True)
        optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3 if method == "full" else 3e-2)
        objective, batch, seen = DPO(beta=500), batch_of(family), []
        for _ in range(4):
            loss = objective(pair_errors(policy, objective, prepare_denoising(policy, objective, batch, 0))).loss.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
        losses.append(seen)
    assert losses[0][0] == pytest.approx(0.6931472, abs=1e-5)
    assert losses[0][-1] < 0.685
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_full_export_loads_in_diffusers_and_generates(loaded, tmp_path, dtype):
    stir(loaded.denoiser)
    loaded.export(tmp_path, dtype, lora=False)
    pipeline: Any = DiffusionPipeline.from_pretrained(tmp_path, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    for name, weight in loaded.denoiser.state_dict().items():
        assert torch.equal(pipeline.transformer.state_dict()[name], weight.to(dtype)), name
    image = pipeline(
        "a cat", height=16, width=16, num_inference_steps=2, output_type="pt", max_sequence_length=12
    ).images
    assert image.shape == (1, 3, 16, 16)
    assert image.isfinite().all()


def test_a_lora_export_reloads_exactly_where_alpha_is_not_the_rank(config, loaded, tmp_path):
    policy = Policy(PolicySection(method="lora", rank=2, alpha=5.0), loaded, CPU, "fp32", 0, True)
    stir(policy.model, "lora", by=0.3)
    loaded.export(tmp_path, torch.float32, lora=True)
    pipeline: Any = DiffusionPipeline.from_pretrained(config.model)
    noisy, timesteps = torch.randn(2, *shape(loaded)), torch.tensor([300.0, 800.0])
    told = loaded.condition(["a cat", "a dog"], torch.zeros(2, 6, dtype=torch.int32))
    with torch.no_grad():
        expected = policy.predict(noisy, timesteps, told)
        before = loaded.predict(pipeline.transformer, noisy, timesteps, told)
        pipeline.load_lora_weights(tmp_path)
        after = loaded.predict(pipeline.transformer, noisy, timesteps, told)
    assert (before - expected).abs().max() > 1e-3
    assert torch.equal(after, expected)


def test_the_lora_file_for_other_programs_adds_the_same_to_every_weight(loaded, tmp_path):
    policy = Policy(PolicySection(method="lora", rank=2, alpha=5.0), loaded, CPU, "fp32", 0, True)
    stir(policy.model, "lora", by=0.3)
    loaded.export(tmp_path, torch.float32, lora=True)
    weights = load_file(tmp_path / COMFY_FILE)
    layers = [
        name.removesuffix(".lora_A.default.weight") for name, _ in policy.model.named_parameters() if "lora_A" in name
    ]
    assert {name.rpartition(".lora_A")[0] for name in weights if "lora_A" in name} == {
        f"transformer.{layer}" for layer in layers
    }
    for layer in layers:
        down, up, alpha = (
            weights[f"transformer.{layer}.{name}"] for name in ("lora_A.weight", "lora_B.weight", "alpha")
        )
        module = policy.model.get_submodule(layer)
        added = 5.0 / 2 * module.lora_B["default"].weight @ module.lora_A["default"].weight
        torch.testing.assert_close(alpha / down.shape[0] * up @ down, added)


def test_latents_that_do_not_divide_into_patches_are_refused(loaded):
    with pytest.raises(ValueError, match=r"data.resolution: latents of 7 x 8 .*multiples of 4 pixels"):
        loaded.scale_latents(torch.zeros(1, shape(loaded)[0], 7, 8))


def test_another_autoencoder_and_another_denoiser_take_the_place_of_the_models_own(config, tmp_path):
    family, make, variant, _ = next(entry for entry in MODELS.values() if entry[0] is type(config))
    other: Path = make(tmp_path / "other", **variant, seed=7)
    mixed = config.model_copy(update={"vae": str(other / "vae"), "denoiser": str(other)})
    loaded, whole = mixed.load(CPU, "fp32"), family(model=str(other)).load(CPU, "fp32")
    for part in ("vae", "transformer"):
        states = loaded.parts[part].state_dict(), whole.parts[part].state_dict()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_a_model_of_another_kind_is_refused_by_name(config):
    with pytest.raises(ValueError, match=r"family.model: 'embedded' cannot be loaded as a \w+Pipeline"):
        config.model_copy(update={"model": "embedded"}).load(CPU, "fp32")
