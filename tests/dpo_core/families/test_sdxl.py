"""Stable Diffusion XL: what its U-Net is told, its refiner, its autoencoder in half precision, its names elsewhere."""

import json
import shutil
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline

from dpo_core.families import SDXL
from dpo_core.families.sdxl import original_layer
from dpo_core.requirements import check_timesteps
from dpo_core.timesteps import Cubic, Discrete, Uniform
from tests.tiny_models import make_tiny_sdxl, make_tiny_sdxl_refiner

CPU = torch.device("cpu")
GEOMETRY = torch.tensor([[1023, 768, 5, 0, 512, 512], [600, 600, 0, 44, 512, 512]], dtype=torch.int32)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def refiner(tmp_path_factory):
    return make_tiny_sdxl_refiner(tmp_path_factory.mktemp("refiner"))


def test_the_unet_is_called_as_diffusers_own_pipeline_calls_it(base):
    family = SDXL(model=str(base)).load(CPU, "fp32")
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    calls = []
    pipeline.unet.register_forward_hook(
        lambda module, args, given, output: calls.append((args, given, output)), with_kwargs=True
    )
    pipeline(
        "a red cat", height=16, width=16, num_inference_steps=1, guidance_scale=2.0, output_type="latent",
        original_size=(1023, 768), crops_coords_top_left=(5, 0), target_size=(512, 512),
    )  # fmt: skip
    ((args, given, output),) = calls
    # The pipeline's first row is what it draws guidance from: no prompt at all.
    told = family.condition(["", "a red cat"], GEOMETRY[:1].repeat(2, 1))
    torch.testing.assert_close(told["text"], given["encoder_hidden_states"])
    for name in ("text_embeds", "time_ids"):
        torch.testing.assert_close(told[name], given["added_cond_kwargs"][name])
    with torch.no_grad():
        prediction = family.predict(family.denoiser, args[0], args[1].long().expand(2), told)
    torch.testing.assert_close(prediction, output[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_image_is_told_its_own_size_and_crop_to_the_pixel(base, precision):
    told = SDXL(model=str(base)).load(CPU, precision).condition(["a", "b"], GEOMETRY)
    assert told["time_ids"].tolist() == GEOMETRY.tolist()
    assert told["time_ids"].dtype == torch.float32


def test_the_refiner_reads_the_second_encoder_and_is_told_an_aesthetic_score(refiner):
    family = SDXL(model=str(refiner)).load(CPU, "fp32")
    told = family.condition(["a red cat", ""], GEOMETRY)
    assert told["time_ids"].tolist() == [[1023, 768, 5, 0, 6.0], [600, 600, 0, 44, 2.5]]
    pipeline: Any = DiffusionPipeline.from_pretrained(refiner)
    text, empty, pooled, empty_pooled = pipeline.encode_prompt("a red cat", negative_prompt="")
    torch.testing.assert_close(told["text"], torch.cat([text, empty]))
    torch.testing.assert_close(told["text_embeds"], torch.cat([pooled, empty_pooled]))


def test_a_refiner_is_not_trained_on_noise_that_it_has_never_seen(base, refiner):
    family = SDXL(model=str(refiner)).load(CPU, "fp32")
    check_timesteps(Uniform(high=0.2), family)
    for timesteps in (Uniform(), Cubic(), Discrete(steps=4), Uniform(high=0.201)):
        with pytest.raises(ValueError, match=r"timesteps\.high=0\.2"):
            check_timesteps(timesteps, family)
    check_timesteps(Cubic(), SDXL(model=str(base)).load(CPU, "fp32"))


def test_turbo_trains_on_the_four_timesteps_of_its_sampler_up_to_pure_noise(base):
    noising = SDXL(model=str(base), zero_terminal_snr=True).load(CPU, "fp32").noising
    timesteps = noising.timesteps_at(Discrete(steps=4).share(torch.linspace(0, 0.999, 64, dtype=torch.float64)))
    assert sorted(set(timesteps.tolist())) == [249, 499, 749, 999]
    assert noising.snr(torch.tensor([999])).item() == 0.0


@pytest.mark.parametrize(
    ("says", "precision", "expected"),
    [
        (True, "fp16", torch.float32),
        (False, "fp16", torch.float16),
        (None, "fp16", torch.float16),
        (True, "bf16", torch.bfloat16),
    ],
)
def test_an_autoencoder_that_overflows_in_half_precision_runs_in_float32(base, tmp_path, says, precision, expected):
    model = shutil.copytree(base, tmp_path / "model")
    config = json.loads((model / "vae" / "config.json").read_text())
    del config["force_upcast"]
    given = {} if says is None else {"force_upcast": says}
    (model / "vae" / "config.json").write_text(json.dumps(config | given))
    family = SDXL(model=str(model)).load(CPU, precision)
    assert family.images.vae.dtype == expected
    mean, std = family.encode_images(torch.full((1, 3, 16, 16), 200, dtype=torch.uint8))
    assert mean.dtype == std.dtype == torch.float32


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        ("down_blocks.1.attentions.0.transformer_blocks.0.norm1", "input_blocks.4.1.transformer_blocks.0.norm1"),
        ("down_blocks.2.attentions.1.proj_in", "input_blocks.8.1.proj_in"),
        ("mid_block.attentions.0.transformer_blocks.9.attn2.to_k", "middle_block.1.transformer_blocks.9.attn2.to_k"),
        ("up_blocks.0.attentions.2.transformer_blocks.3.ff.net.2", "output_blocks.2.1.transformer_blocks.3.ff.net.2"),
        ("up_blocks.1.attentions.0.proj_out", "output_blocks.3.1.proj_out"),
        ("down_blocks.0.resnets.1.conv1", "input_blocks.2.0.in_layers.2"),
        ("mid_block.resnets.1.time_emb_proj", "middle_block.2.emb_layers.1"),
        ("up_blocks.2.resnets.2.conv_shortcut", "output_blocks.8.0.skip_connection"),
        ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("add_embedding.linear_1", "label_emb.0.0"),
        ("conv_in", "input_blocks.0.0"),
    ],
)  # fmt: skip
def test_names_of_stability_ais_unet(layer, name):
    assert original_layer(layer, layers_per_block=2) == name
