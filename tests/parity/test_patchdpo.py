"""PatchDPO as its own script computed it: four updates of an IP-Adapter in a tiny SDXL, replayed by our step.

Where we differ on purpose, a test shows the script's value and ours:

- time ids: the script flattens sizes of two images across rows; ours are each image's own.
- latents: the script takes the mean of the autoencoder's posterior; ours are drawn from it, as for every objective.
- a dropped caption: the script encodes the empty text; ours is zeros, what diffusers' pipeline guides away from.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpo_core.data.batches import PairBatch
from dpo_core.families import SDXL
from dpo_core.families.ip_adapter import IPAdapterSection
from dpo_core.objectives import PatchDPO
from dpo_core.optim import OptimSection, make_optimizer
from dpo_core.policy import Policy, PolicySection
from dpo_core.step import Denoising, pair_errors, pair_latents

ASSETS = Path(__file__).parents[1] / "assets" / "parity"
CPU = torch.device("cpu")
META: dict[str, Any] = json.loads((ASSETS / "patchdpo_sdxl" / "meta.json").read_text())
TOLERANCE: dict[str, float] = META["tolerance"]["advice"]
SIZES = torch.full((8, 6), 64, dtype=torch.int32)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    """The recorded adapter with two more layers in its resampler that add nothing: diffusers' loader wants four."""
    state = load_file(ASSETS / "models" / "ip_adapter" / "ip-adapter-plus_tiny.safetensors")
    for name, tensor in list(state.items()):
        adds = name.endswith((".0.to_out.weight", ".1.3.weight"))
        for old in (0, 1):
            if name.startswith(f"image_proj.layers.{old}."):
                new = name.replace(f"layers.{old}.", f"layers.{old + 2}.", 1)
                state[new] = torch.zeros_like(tensor) if adds else tensor.clone()
    file = tmp_path_factory.mktemp("adapter") / "ip-adapter-plus.safetensors"
    save_file(state, file)
    return file


@pytest.fixture
def policy(adapter) -> Policy:
    family = SDXL(model=str(ASSETS / "models" / "sdxl")).load(CPU, "fp32")
    section = IPAdapterSection(model=str(adapter), image_encoder=str(ASSETS / "models" / "ip_image_encoder"))
    config = PolicySection(method="ip_adapter", ip_adapter=section)
    return Policy(config, family, CPU, "fp32", seed=0, needs_reference=False)


@pytest.fixture(scope="module")
def steps() -> list[dict[str, torch.Tensor]]:
    """Of each update: its inputs and outputs."""
    tensors = load_file(ASSETS / "patchdpo_sdxl" / "steps.safetensors")
    found: list[dict[str, torch.Tensor]] = [{} for _ in range(META["n_optimizer_steps"])]
    for name, tensor in tensors.items():
        found[int(name[1:3])][name[4:]] = tensor
    return found


def trainable(policy: Policy) -> list[torch.nn.Parameter]:
    """The trained parameters in the script's order: adapter_modules.<i> is the i-th attention processor."""
    processors = list(policy.model.attn_processors)
    named = policy.named_parameters()
    names = [entry["name"].split(".") for entry in META["trainable"]]
    return [named[f"{processors[int(index)]}.{layer}.0.weight"] for _, index, layer, _ in names]


def told(step: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        "text": step["encoder_hidden_states"],
        "text_embeds": step["pooled_prompt_embeds"],
        "time_ids": step["add_time_ids"],
        "image": step["image_embeds"][:, None],
    }


def errors_of(policy: Policy, step: dict[str, torch.Tensor]):
    noising, conditioning = policy.family.noising, told(step)
    denoising = Denoising(
        noisy=noising.add_noise(step["latents"], step["noise"], step["timesteps"]),
        target=noising.target(step["latents"], step["noise"], step["timesteps"]),
        timesteps=step["timesteps"],
        conditioning=conditioning,
        reference_conditioning=conditioning,
        pairs=4,
        quality=torch.stack([step["target_rmap"], step["contra_rmap"]], dim=1),
    )
    return denoising, pair_errors(policy, PatchDPO(), denoising)


def test_four_updates_are_those_of_the_script(policy, steps):
    optimizer = make_optimizer(OptimSection(lr=META["optimizer"]["lr"], weight_decay=0.01), policy.parameters())
    ordered = trainable(policy)
    assert {id(parameter) for parameter in ordered} == {id(parameter) for parameter in policy.parameters()}
    for step in steps:
        denoising, errors = errors_of(policy, step)
        with torch.no_grad():
            prediction = policy.predict(denoising.noisy, denoising.timesteps, denoising.conditioning)
        torch.testing.assert_close(prediction, step["policy_pred"], rtol=0, atol=TOLERANCE["pred_atol"])
        loss = PatchDPO()(errors).loss
        each = loss.detach() * 2 - step["err_weighted"].view(2, 4).sum(0)
        assert each.abs().max() < 2 * TOLERANCE["loss_atol"]
        assert loss.mean().item() == pytest.approx(step["loss"].item(), abs=TOLERANCE["loss_atol"])

        loss.mean().backward()
        gradients = [parameter.grad.double() for parameter in ordered if parameter.grad is not None]
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        assert norm.item() == pytest.approx(step["grad_norm_f64"].item(), rel=TOLERANCE["grad_norm_rtol"])
        optimizer.step()
        optimizer.zero_grad()
        for parameter, (total, absolute) in zip(ordered, step["param_sums"].tolist(), strict=True):
            per_element = TOLERANCE["param_sum_per_element_atol"] * parameter.numel()
            assert parameter.double().sum().item() == pytest.approx(total, abs=per_element)
            assert parameter.double().abs().sum().item() == pytest.approx(absolute, abs=per_element)


def test_latents_captions_and_image_prompts_are_those_of_the_script(policy, steps):
    family, step = policy.family, steps[0]
    mean, _ = family.encode_images(step["pixel_values_u8"])
    torch.testing.assert_close(family.scale_latents(mean), step["latents"], rtol=0, atol=TOLERANCE["latents_atol"])
    conditioning = family.condition(META["prompts"][0] * 2, SIZES)
    atol = TOLERANCE["encoder_hidden_states_atol"]
    torch.testing.assert_close(conditioning["text"], step["encoder_hidden_states"], rtol=0, atol=atol)
    torch.testing.assert_close(conditioning["text_embeds"], step["pooled_prompt_embeds"], rtol=0, atol=atol)

    assert step["drop_image_embed"][0] == 0
    shown = torch.cat([step["clip_image_0_u8"], torch.zeros_like(step["clip_image_0_u8"])])
    embedded = family.embed_images(shown)[:, 0]
    torch.testing.assert_close(embedded[0], step["image_embeds"][0], rtol=0, atol=atol)
    dropped = [
        step["image_embeds"][row]
        for step in steps
        for row, drop in enumerate(step["drop_image_embed"].tolist())
        if drop
    ]
    assert len(dropped) > 0
    torch.testing.assert_close(embedded[1], dropped[0], rtol=0, atol=atol)
    with torch.no_grad():
        tokens = policy.model.encoder_hid_proj([step["image_embeds"][:, None]])[0]
    torch.testing.assert_close(tokens[:, 0], step["ip_tokens"], rtol=0, atol=atol)


def test_the_image_prompt_is_shown_to_both_images_of_its_pair(policy, steps):
    shown = torch.cat([steps[0]["clip_image_0_u8"]] + [torch.zeros(1, 3, 224, 224, dtype=torch.uint8)] * 3)
    captions = META["prompts"][0]
    batch = PairBatch(list("abcd"), [0] * 4, torch.ones(4), captions, captions, geometry=SIZES.view(4, 2, 6))
    batch.prompt_image = shown
    conditioning, reference = policy.condition(batch, 2)
    assert conditioning is reference
    assert torch.equal(conditioning["image"][:4], conditioning["image"][4:])
    torch.testing.assert_close(conditioning["image"][4, 0], steps[0]["image_embeds"][4], rtol=0, atol=1e-5)


def test_the_script_scrambles_the_time_ids_of_a_pair_and_we_do_not(policy, steps):
    step = steps[0]
    sizes, crops, targets = (step[name].int() for name in ("original_size", "crop_coords_top_left", "target_size"))
    own = torch.cat([sizes, crops, targets], dim=-1).transpose(0, 1).flatten(0, 1)
    ours = policy.family.condition(META["prompts"][0] * 2, own.int())["time_ids"]
    assert ours.tolist() == own.tolist()
    pair = sizes[0].flatten().tolist()
    assert step["add_time_ids"][0].tolist() == [*pair, 0, 0]
    assert step["add_time_ids"][1].tolist() == [0, 0, 64, 64, 64, 64]


def test_the_script_encodes_a_dropped_caption_where_guidance_will_use_zeros(policy, steps):
    dropped = META["prompts"][1].index("")
    ours = policy.family.condition(META["prompts"][1], SIZES[:4])["text"]
    assert not ours[dropped].any()
    assert steps[1]["encoder_hidden_states"][dropped].any()
    others = [index for index in range(4) if index != dropped]
    torch.testing.assert_close(ours[others], steps[1]["encoder_hidden_states"][others], rtol=0, atol=1e-5)


def test_the_script_trains_on_the_mean_of_the_posterior_and_we_draw_from_it(policy, steps):
    step, family = steps[0], policy.family
    mean, std = (each.unflatten(0, (2, 4)).transpose(0, 1) for each in family.encode_images(step["pixel_values_u8"]))
    captions = META["prompts"][0]
    batch = PairBatch(list("abcd"), [0] * 4, torch.ones(4), captions, captions, geometry=SIZES.view(4, 2, 6))
    batch.posterior = torch.stack([mean, std], dim=2)
    drawn = pair_latents(policy, batch, 2, seed=0)
    away = (drawn - step["latents"]) / family.scale_latents(std.transpose(0, 1).flatten(0, 1))
    assert away.mean().abs() < 0.05
    assert away.std().item() == pytest.approx(1, abs=0.05)
