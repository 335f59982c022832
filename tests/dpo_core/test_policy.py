"""What is trained, what stays as it was, and in which precision each is kept."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from dpo_core.families import SD15
from dpo_core.policy import Policy, PolicySection
from tests.benchmarks.training_step import latent_batch

CPU = torch.device("cpu")
LORA: dict[str, Any] = {"method": "lora", "rank": 4, "alpha": 11.0}


def policy_of(model: Any, precision: Any = "fp32", reference: bool = True, seed: int = 0, **fields: Any) -> Policy:
    family = SD15(model=str(model)).load(CPU, precision)
    return Policy(PolicySection(**fields), family, CPU, precision, seed, reference)


def stir(policy: Policy) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def predictions(policy: Policy) -> tuple[torch.Tensor, torch.Tensor]:
    noisy, timesteps = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([5, 900])
    with torch.no_grad():
        told, reference_told = policy.condition(latent_batch(1, (4, 8, 8)), 2)
        return policy.predict(noisy, timesteps, told), policy.predict_reference(noisy, timesteps, reference_told)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "fields",
    [{}, LORA, LORA | {"dora": True}, LORA | {"text_encoder": True}, LORA | {"dora": True, "text_encoder": True}],
    ids=["full", "lora", "dora", "text", "dora and text"],
)
def test_policy_and_reference_start_alike_to_the_last_bit_and_then_only_the_policy_moves(tiny_sd, precision, fields):
    policy = policy_of(tiny_sd, precision, **fields)
    first, start = predictions(policy)
    assert torch.equal(first, start)
    stir(policy)
    moved, still = predictions(policy)
    assert torch.equal(still, start)
    assert not torch.allclose(moved, still, atol=1e-3)


@pytest.mark.parametrize("dora", [False, True])
def test_base_weights_are_kept_in_the_precision_of_the_run_and_adapters_in_float32(tiny_sd, dora):
    policy = policy_of(tiny_sd, "bf16", text_encoder=True, dora=dora, **LORA)
    for module in (policy.model, *policy.family.text_encoders):
        assert {p.dtype for p in module.parameters() if not p.requires_grad} == {torch.bfloat16}
        assert {p.dtype for p in module.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in policy_of(tiny_sd, "bf16").parameters()} == {torch.float32}


def test_an_adapter_adds_alpha_over_rank_times_up_times_down(tiny_sd):
    policy = policy_of(tiny_sd, **LORA)
    stir(policy)
    layer = policy.model.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    x = torch.randn(3, layer.in_features)
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = x @ (layer.base_layer.weight + 11.0 / 4 * up @ down).T
    torch.testing.assert_close(layer(x), expected)


def test_dora_scales_each_output_to_its_magnitude(tiny_sd):
    policy = policy_of(tiny_sd, dora=True, **LORA)
    stir(policy)
    layer = policy.model.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    x, magnitude = torch.randn(3, layer.in_features), layer.lora_magnitude_vector["default"].weight
    whole = layer.base_layer.weight + 11.0 / 4 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(layer(x), x @ (magnitude[:, None] * whole / whole.norm(dim=1, keepdim=True)).T)


def test_without_trained_text_encoders_policy_and_reference_are_told_the_same(tiny_sd):
    told, reference_told = policy_of(tiny_sd, **LORA).condition(latent_batch(1, (4, 8, 8)), 2)
    assert told is reference_told


def test_gradients_reach_the_text_encoder_through_the_prediction(tiny_sd):
    policy = policy_of(tiny_sd, text_encoder=True, **LORA)
    told, reference_told = policy.condition(latent_batch(2, (4, 8, 8)), 2)
    assert told["text"].requires_grad
    assert not reference_told["text"].requires_grad
    policy.predict(torch.randn(4, 4, 8, 8), torch.tensor([5, 900, 5, 900]), told).square().mean().backward()
    gradients = {name: p.grad for name, p in policy.named_parameters().items() if ".lora_B." in name}
    for part in ("text_encoders.0.", "down_blocks."):
        found = [gradient for name, gradient in gradients.items() if name.startswith(part)]
        assert any(gradient is not None and gradient.any() for gradient in found)


def test_the_state_brings_back_the_policy_and_leaves_the_reference(tiny_sd):
    fields = LORA | {"text_encoder": True, "dora": True}
    policy = policy_of(tiny_sd, **fields)
    stir(policy)
    expected = predictions(policy)
    state = {name: tensor.clone() for name, tensor in policy.state().items()}
    assert any(name.startswith("text_encoders.0.") for name in state)
    fresh = policy_of(tiny_sd, seed=5, **fields)
    assert not torch.equal(predictions(fresh)[0], expected[0])
    fresh.load_state(state)
    for found, wanted in zip(predictions(fresh), expected, strict=True):
        assert torch.equal(found, wanted)
    with pytest.raises(ValueError, match="other trainable weights"):
        policy_of(tiny_sd, **LORA).load_state(state)


def test_adapters_start_as_the_seed_says_whatever_was_drawn_before(tiny_sd):
    one = policy_of(tiny_sd, seed=3, **LORA).state()
    torch.randn(7)
    drawn = torch.random.get_rng_state()
    again, other = (policy_of(tiny_sd, seed=seed, **LORA).state() for seed in (3, 4))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.random.get_rng_state(), drawn)


def test_recomputing_activations_changes_no_gradient(tiny_sd):
    found = []
    for recompute in (False, True):
        policy = policy_of(tiny_sd, gradient_checkpointing=recompute, **LORA)
        stir(policy)
        told, _ = policy.condition(latent_batch(1, (4, 8, 8)), 2)
        noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        policy.predict(noisy, torch.tensor([5, 900]), told).square().mean().backward()
        found.append([p.grad for p in policy.parameters()])
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_a_run_that_needs_no_reference_keeps_no_second_copy(tiny_sd):
    assert policy_of(tiny_sd, reference=False).frozen is None
    assert policy_of(tiny_sd, **LORA).frozen is None
    assert policy_of(tiny_sd).frozen is not None


def test_targets_that_fit_nothing_are_named(tiny_sd):
    with pytest.raises(ValueError, match=r"policy\.targets: \['no_such_layer'\] fits no layer"):
        policy_of(tiny_sd, targets=("no_such_layer",), **LORA)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"dora": True}, "dora is for method: lora"),
        ({"rank": 64}, "rank is for method: lora, not for method: full"),
        ({"targets": ["to_q"], "method": "full"}, "targets is for method: lora"),
        ({"method": "lora", "ip_adapter": {"resampler": True}}, "ip_adapter is for method: ip_adapter"),
        ({"method": "ip_adapter", "text_encoder": True}, "text_encoder is for method: lora"),
        ({"method": "ip_adapter"}, r"needs ip_adapter\.model and ip_adapter\.image_encoder"),
        ({"method": "ip_adapter", "ip_adapter": {"model": "a.safetensors"}}, r"needs ip_adapter\.image_encoder"),
    ],
)
def test_settings_that_do_not_fit_the_method_are_refused(fields, why):
    with pytest.raises(ValidationError, match=why):
        PolicySection.model_validate(fields)
