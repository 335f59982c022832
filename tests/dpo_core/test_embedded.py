import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from dpo_core.data.sources.shapes import COLOURS, captions
from dpo_core.embedded.build import build, new_unet, repack
from dpo_core.embedded.tokenizer import MAX_LENGTH, words
from dpo_core.embedded.vae import SCALING_FACTOR, new_vae, normalise_latents, reconstruct, render, train_vae

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "dpo_core" / "embedded" / "model"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("embedded") / "model", fp16=True)


@pytest.fixture(scope="module")
def pipeline(folder) -> Any:
    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def states(pipeline, texts: list[str]) -> torch.Tensor:
    tokens = pipeline.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        return pipeline.text_encoder(tokens.input_ids)[0]


def test_the_built_folder_generates_64_pixel_images(pipeline):
    images = pipeline(["a red circle"] * 2, num_inference_steps=2, guidance_scale=3.0).images
    assert [image.size for image in images] == [(64, 64)] * 2


def test_half_precision_takes_at_most_12_megabytes(folder):
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 12e6


def test_the_same_seed_builds_the_same_weights(folder, tmp_path):
    again = build(tmp_path, fp16=True)
    for part in ("unet/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model"):
        assert (folder / f"{part}.safetensors").read_bytes() == (again / f"{part}.safetensors").read_bytes()


def test_every_word_of_the_world_is_one_token(pipeline):
    assert all(len(pipeline.tokenizer(word).input_ids) == 3 for word in words())
    assert len(pipeline.tokenizer("a red circle left of a blue square").input_ids) == 10


@pytest.mark.parametrize("text", ["", "Ünïcode 🐱, 1990's\n\n", "x" * 500, "<|endoftext|>"])
def test_any_text_is_tokenised_and_cut(pipeline, text):
    tokens = pipeline.tokenizer(text, padding="max_length", truncation=True).input_ids
    assert len(tokens) == MAX_LENGTH
    assert max(tokens) < pipeline.text_encoder.config.vocab_size


def test_the_first_colour_of_unseen_captions_is_linear_in_the_text_states(pipeline):
    train, test = captions("train", singles=False), captions("heldout", singles=False)
    names = list(COLOURS)
    labels = [torch.tensor([names.index(text.split()[1]) for text in texts]) for texts in (train, test)]
    seen, unseen = (states(pipeline, texts).mean(1) for texts in (train, test))
    weights = torch.linalg.lstsq(seen, torch.nn.functional.one_hot(labels[0]).float()).solution
    assert ((unseen @ weights).argmax(1) == labels[1]).all()


def test_a_denoising_call_stays_cheap():
    unet = new_unet()
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        unet(torch.zeros(1, 4, 16, 16), torch.tensor([1]), torch.zeros(1, MAX_LENGTH, 128))
    assert flops.get_total_flops() <= 0.28e9
    assert sum(weight.numel() for weight in unet.parameters()) <= 4.5e6


def test_normalised_latents_have_unit_scale_and_change_no_reconstruction():
    torch.manual_seed(0)
    vae = new_vae()
    drawings = render(captions("train", singles=True), 16, 0)
    before = reconstruct(vae, drawings)
    normalise_latents(vae, drawings)
    encode: Any = vae.encode
    latents = encode(drawings.float() / 127.5 - 1).latent_dist.mean * SCALING_FACTOR
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 1e-3
    assert (reconstruct(vae, drawings) - before).abs().max() <= 1


def test_a_trained_autoencoder_is_used_by_build(tmp_path):
    vae = train_vae(tmp_path / "vae", 2, batch_size=4, drawings=8, tests=4)
    build(tmp_path / "model", tmp_path / "vae")
    built = AutoencoderKL.from_pretrained(tmp_path / "model" / "vae")
    assert torch.equal(built.decoder.conv_in.weight, vae.decoder.conv_in.weight)


def test_a_folder_without_autoencoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no autoencoder"):
        build(tmp_path / "model", tmp_path)


def test_a_trained_pipeline_is_written_anew_in_half_precision(folder, pipeline, tmp_path):
    with torch.no_grad():
        pipeline.unet.conv_in.weight += 1 / 3
    pipeline.save_pretrained(tmp_path / "trained")
    again = repack(tmp_path / "again", tmp_path / "trained", fp16=True)
    assert files_of(again) == files_of(folder)
    unet = UNet2DConditionModel.from_pretrained(again / "unet", torch_dtype=torch.float16)
    assert torch.equal(unet.conv_in.weight, pipeline.unet.conv_in.weight.half())
    with pytest.raises(ValueError, match="holds no pipeline"):
        repack(tmp_path / "never", tmp_path)


@pytest.mark.slow
def test_the_recipe_makes_a_model_of_the_same_parts_as_the_shipped_one(tmp_path):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    recipe = [str(SHIPPED.parent / "recipe.sh"), str(tmp_path), "400"]
    subprocess.run(recipe, cwd=ROOT, env=os.environ | {"PATH": path}, check=True, timeout=900)
    assert files_of(tmp_path / "model-3") == files_of(SHIPPED)
    made, shipped = (UNet2DConditionModel.from_pretrained(model / "unet") for model in (tmp_path / "model-3", SHIPPED))
    assert dict(made.config) | {"_name_or_path": ""} == dict(shipped.config) | {"_name_or_path": ""}


def files_of(model: Path) -> set[str]:
    return {str(file.relative_to(model)) for file in model.rglob("*") if file.is_file()}
