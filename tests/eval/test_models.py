import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from eval.generate import generate
from eval.models import load_pipeline, model_hash
from tests.tiny_models import make_tiny_sd

FAST = {"num_inference_steps": 2, "guidance_scale": 2.0}


@pytest.fixture
def lora_folder(tiny_folder, tmp_path):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder)
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    for name, parameter in pipeline.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    folder = tmp_path / "lora"
    layers: dict[str, Any] = get_peft_model_state_dict(pipeline.unet)
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    (folder / "provenance.json").write_text(json.dumps({"base_model": str(tiny_folder)}))
    return folder


def test_a_lora_folder_loads_onto_its_base_and_changes_the_image(tiny, tiny_folder, lora_folder):
    base = np.asarray(generate(tiny, ["a"], [0], **FAST)[0])
    adapted = np.asarray(generate(load_pipeline(lora_folder), ["a"], [0], **FAST)[0])
    elsewhere = np.asarray(generate(load_pipeline(lora_folder, base=tiny_folder), ["a"], [0], **FAST)[0])
    assert not np.array_equal(base, adapted)
    assert np.array_equal(adapted, elsewhere)


def test_a_lora_trained_on_a_denoiser_from_elsewhere_is_loaded_onto_that_one(tiny_folder, lora_folder, tmp_path):
    other = make_tiny_sd(tmp_path / "other", seed=1)
    hash_before, before = model_hash(lora_folder), load_pipeline(lora_folder)
    (lora_folder / "provenance.json").write_text(
        json.dumps({"base_model": str(tiny_folder), "base_denoiser": str(other)})
    )
    loaded, own = load_pipeline(lora_folder), StableDiffusionPipeline.from_pretrained(other)
    assert torch.equal(loaded.unet.conv_in.weight, own.unet.conv_in.weight)
    assert not torch.equal(loaded.unet.conv_in.weight, before.unet.conv_in.weight)
    assert torch.equal(loaded.vae.encoder.conv_in.weight, before.vae.encoder.conv_in.weight)
    assert model_hash(lora_folder) != hash_before
    (lora_folder / "provenance.json").write_text(
        json.dumps({"base_model": str(tiny_folder), "base_denoiser": str(tmp_path / "gone")})
    )
    with pytest.raises(ValueError, match=r"cannot load the denoiser .*gone"):
        load_pipeline(lora_folder)


def test_a_lora_folder_without_provenance_is_refused(lora_folder):
    (lora_folder / "provenance.json").unlink()
    with pytest.raises(ValueError, match=r"has no provenance\.json"):
        load_pipeline(lora_folder)


def test_the_hash_follows_the_weights_and_not_the_place(tiny_folder, lora_folder, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(tiny_folder, moved)
    assert model_hash(moved) == model_hash(tiny_folder) == model_hash(str(tiny_folder))
    weights = next(moved.glob("unet/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert model_hash(moved) != model_hash(tiny_folder)
    assert model_hash(lora_folder) not in (model_hash(tiny_folder), model_hash(lora_folder, base=moved))


def test_a_pipeline_in_half_precision_has_half_weights(tiny_folder):
    assert load_pipeline(tiny_folder, "cpu", "bfloat16").unet.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "embedded"])
def test_a_model_that_is_not_there_is_one_clear_error(name):
    with pytest.raises(ValueError, match="no model folder"):
        load_pipeline(name)


def test_an_empty_folder_and_an_unknown_dtype_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no model in .*model_index\.json"):
        load_pipeline(tmp_path)
    with pytest.raises(ValueError, match="unknown dtype 'int8'; allowed: float32, float16, bfloat16"):
        load_pipeline(tmp_path, "cpu", "int8")
