"""The file for ComfyUI and kohya's scripts, read by a reader of our own that merges it into weights as theirs do."""

import json
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dpo_core.families import SD15, SDXL
from dpo_core.families.lora_files import COMFY_FILE, DIFFUSERS_FILE
from dpo_core.policy import Policy, PolicySection
from tests.tiny_families import TINY

CPU = torch.device("cpu")
KINDS = {"sd15": SD15, "sdxl": SDXL}
GEOMETRY = torch.full((2, 6), 16, dtype=torch.int32)
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.0.proj", "conv1", "time_emb_proj")


@pytest.fixture(scope="module", params=KINDS)
def config(request, tmp_path_factory):
    return KINDS[request.param](model=str(TINY[request.param](tmp_path_factory.mktemp(request.param))))


def trained(config: Any, **fields: Any) -> Policy:
    section = {"method": "lora", "rank": 4, "alpha": 11.0, "targets": LAYERS} | fields
    policy = Policy(PolicySection.model_validate(section), config.load(CPU, "fp32"), CPU, "fp32", 0, False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


def predict(family: Any) -> torch.Tensor:
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        told = family.condition(["a red cat", "b"], GEOMETRY, remember=False)
        return family.predict(family.denoiser, noisy, torch.tensor([5, 900]), told)


def merge(family: Any, state: dict[str, torch.Tensor], *, alphas: bool) -> None:
    """Add each layer's change to its weight; a reader without ``alphas`` takes alpha to be the rank."""
    networks = dict(zip(family.text_names, family.text_encoders, strict=True)) | {"unet": family.denoiser}
    weights: dict[str, torch.Tensor] = {}
    for part, network in networks.items():
        for layer, module in network.named_modules():
            theirs = (
                family.kohya_layer(layer) if part == "unet" and hasattr(module, "weight") and listed(layer) else layer
            )
            theirs = theirs if part == "unet" or theirs.startswith("text_model.") else f"text_model.{theirs}"
            weights[f"{family.kohya[part]}_{theirs.replace('.', '_')}"] = getattr(module, "weight", torch.empty(0))
    for name in [name for name in state if name.endswith(".lora_down.weight")]:
        layer = name.removesuffix(".lora_down.weight")
        down, up = state[name], state[f"{layer}.lora_up.weight"]
        scale = state[f"{layer}.alpha"].item() / down.shape[0] if alphas else 1.0
        weight = weights[layer].data
        whole = weight + scale * (up.flatten(1) @ down.flatten(1)).view_as(weight)
        if f"{layer}.dora_scale" in state:
            # ComfyUI takes the norm of the weight as it was.
            norm = weight.flatten(1).norm(dim=1).view(-1, *(1 for _ in whole.shape[1:]))
            whole = whole / norm * state[f"{layer}.dora_scale"]
        weight.copy_(whole)


def listed(layer: str) -> bool:
    """Whether kohya's scripts have a name for it: norms outside the blocks have none."""
    return layer.startswith(("down_blocks.", "mid_block.", "up_blocks."))


@pytest.mark.parametrize("alphas", [True, False])
@pytest.mark.parametrize("fields", [{}, {"dora": True}, {"text_encoder": True}], ids=["lora", "dora", "text"])
def test_merging_the_comfy_file_gives_the_policy_whether_its_alphas_are_read_or_not(config, tmp_path, fields, alphas):
    before = predict(config.load(CPU, "fp32"))
    policy = trained(config, **fields)
    expected = predict(policy.family)
    policy.family.export(tmp_path, torch.float32, lora=True)
    family = config.load(CPU, "fp32")
    merge(family, load_file(tmp_path / COMFY_FILE), alphas=alphas)
    torch.testing.assert_close(predict(family), expected, rtol=1e-3, atol=1e-4)
    assert (before - expected).abs().max() > 0.01


def test_the_names_are_kohyas(config, tmp_path):
    trained(config, text_encoder=True).family.export(tmp_path, torch.float32, lora=True)
    names = load_file(tmp_path / COMFY_FILE)
    if config.kind == "sd15":
        unet = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0"
        text = ["lora_te_text_model_encoder_layers_0_self_attn_q_proj"]
    else:
        unet = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0"
        text = [f"lora_te{i}_text_model_encoder_layers_0_self_attn_q_proj" for i in (1, 2)]
    assert {f"{layer}.{end}" for layer in (unet, *text) for end in ("lora_down.weight", "lora_up.weight", "alpha")} <= (
        names.keys()
    )
    assert {tensor.item() for name, tensor in names.items() if name.endswith(".alpha")} == {4.0}


def test_the_diffusers_file_carries_alpha_and_the_weights_as_they_were_trained(config, tmp_path):
    policy = trained(config)
    policy.family.export(tmp_path, torch.float32, lora=True)
    with safe_open(tmp_path / DIFFUSERS_FILE, "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (metadata["unet.r"], metadata["unet.lora_alpha"]) == (4, 11.0)
    layers = load_file(tmp_path / DIFFUSERS_FILE)
    for name, parameter in policy.named_parameters().items():
        assert torch.equal(layers[f"unet.{name.replace('.default', '')}"], parameter)


def test_half_precision_is_written_when_asked_for_and_alphas_stay_exact(config, tmp_path):
    trained(config).family.export(tmp_path, torch.float16, lora=True)
    for file in (DIFFUSERS_FILE, COMFY_FILE):
        assert {t.dtype for name, t in load_file(tmp_path / file).items() if ".lora_" in name} == {torch.float16}
