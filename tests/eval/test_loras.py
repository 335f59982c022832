import numpy as np
import pytest
import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from safetensors.torch import load_file, save_file

from eval.generate import generate
from eval.loras import LORA_FILE
from eval.sources import find_source
from tests.eval.test_sources import lora

__all__ = ["lora"]

FAST = {"num_inference_steps": 2, "guidance_scale": 2.0}


@pytest.fixture
def state(lora):
    return load_file(lora / LORA_FILE)


def drawn(folder, file):
    return np.asarray(generate(find_source(str(folder), lora=str(file)).load(), ["a"], [0], **FAST)[0]).astype(int)


@pytest.mark.parametrize("convert", [convert_state_dict_to_diffusers, convert_state_dict_to_kohya])
def test_the_same_lora_in_an_older_layout_draws_the_same(tiny_folder, lora, state, tmp_path, convert):
    save_file(convert(dict(state)), tmp_path / "old.safetensors")
    assert np.array_equal(drawn(tiny_folder, tmp_path / "old.safetensors"), drawn(tiny_folder, lora))


def renamed(state, old, new):
    return {name.replace(old, new): tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda state: renamed(state, "unet.", "base_model.model."), "has nothing for this StableDiffusionPipeline"),
        (lambda state: renamed(state, "unet.", "transformer."), "allowed: names that begin with one of unet, text_enc"),
        (
            lambda state: renamed(state, "attn1", "attn9"),
            r"does not fit .* of its \d+ layers are not in it, first .*attn9",
        ),
        (lambda state: {name: torch.zeros(2, 2) for name in state}, "cannot lay the LoRA .*size mismatch"),
        (lambda state: {"other": torch.zeros(2)}, "cannot lay the LoRA"),
    ],
)
def test_a_lora_of_which_any_layer_would_be_lost_is_refused(tiny_folder, state, tmp_path, change, problem):
    save_file(change(state), tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=f"(?s){problem}"):
        find_source(str(tiny_folder), lora=str(tmp_path / "odd.safetensors")).load()


def test_what_a_lora_is_laid_on_and_the_lora_must_be_there(tiny_folder, lora, tmp_path):
    for model in ("/no/such/folder", str(lora / LORA_FILE), str(tmp_path)):
        with pytest.raises(ValueError, match=r"no model folder|is a file; give|no model in"):
            find_source(model, lora=str(lora))
    with pytest.raises(ValueError, match=r"no LoRA '/no/such\.safetensors'; give a file, a folder"):
        find_source(str(tiny_folder), lora="/no/such.safetensors")
