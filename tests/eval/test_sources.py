import json
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image

from eval.generate import generate
from eval.prompts import Prompt
from eval.sources import Source, find_source, image_rows

FAST = {"num_inference_steps": 2, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def lora(tiny_folder, tmp_path_factory):
    """A LoRA that changes a lot, as a file without a provenance."""
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder)
    unet = pipeline.unet
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    torch.manual_seed(0)
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=1.0)
    folder = tmp_path_factory.mktemp("lora")
    layers: dict[str, Any] = get_peft_model_state_dict(unet)
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    return folder


def pixels(pipeline):
    return np.asarray(generate(pipeline, ["a"], [0], **FAST)[0]).astype(int)


def test_a_lora_is_laid_on_at_its_scale(tiny_folder, lora):
    plain = pixels(Source(str(tiny_folder)).load())
    images = [pixels(find_source(str(tiny_folder), lora=str(lora), scale=scale).load()) for scale in (0.0, 0.5, 1.0)]
    assert np.abs(images[0] - plain).max() <= 1
    assert np.abs(images[1] - images[0]).max() > 2
    assert np.abs(images[2] - images[1]).max() > 2
    file = lora / "pytorch_lora_weights.safetensors"
    assert np.array_equal(pixels(find_source(str(tiny_folder), lora=str(file)).load()), images[2])


def test_the_hash_of_weights_knows_lora_and_scale(tiny_folder, lora):
    names = [find_source(str(tiny_folder), lora=path, scale=scale).weights for path, scale in
             ((None, 1.0), (str(lora), 1.0), (str(lora), 0.5))]  # fmt: skip
    assert len(set(names)) == 3


def test_a_lora_that_is_not_there_is_told(tiny_folder):
    with pytest.raises(ValueError, match="cannot lay the LoRA 'no/such'"):
        find_source(str(tiny_folder), lora="no/such").load()


@pytest.fixture
def images(tmp_path):
    for i in range(4):
        Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(tmp_path / f"{10 - i if i < 2 else 100 + i}.png")
    return tmp_path


PROMPTS = [Prompt(3, "A cat.", {}, "mine"), Prompt(7, "a dog", {}, "mine")]


def test_images_made_elsewhere_are_matched_by_the_text_of_their_prompt(images):
    rows = [{"file": f"{name}.png", "prompt": text} for name, text in
            ((102, "a dog"), (9, "a cat"), (10, "a  cat"), (103, "A dog"))]  # fmt: skip
    (images / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = find_source(str(images))
    assert source.is_images
    found = image_rows("other", source, PROMPTS, [5, 6])
    assert [(row["prompt_index"], row["seed"], row["file"].rpartition("/")[2]) for row in found] == [
        (3, 5, "9.png"), (3, 6, "10.png"), (7, 5, "102.png"), (7, 6, "103.png")
    ]  # fmt: skip
    assert {row["weights"] for row in found} == {source.weights}
    before = source.weights
    Image.new("RGB", (8, 8)).save(images / "9.png")
    assert source.weights != before


def test_a_list_of_texts_names_the_images_in_natural_order(images):
    (images / "prompts.txt").write_text("a cat\na dog\na cow\na pig\n")
    found = image_rows("other", find_source(str(images)), PROMPTS, [0])
    assert [row["file"].rpartition("/")[2] for row in found] == ["9.png", "10.png"]


def test_images_that_do_not_fit_the_plan_are_refused(images):
    source = find_source(str(images))
    with pytest.raises(ValueError, match=r"holds images but no prompts\.txt"):
        image_rows("other", source, PROMPTS, [0])
    (images / "prompts.txt").write_text("a cat\n")
    with pytest.raises(ValueError, match="has 1 prompts for 4 images"):
        image_rows("other", source, PROMPTS, [0])
    (images / "prompts.txt").write_text("a cat\na cow\na cow\na cow\n")
    with pytest.raises(ValueError, match="fewer than 1 images for 1 of 2 prompts, first 'a dog'"):
        image_rows("other", source, PROMPTS, [0])
    (images / "prompts.txt").unlink()
    (images / "metadata.csv").write_text("file_name,caption\ngone.png,a cat\n")
    with pytest.raises(ValueError, match=r"names 1 images that are not there, first .*gone\.png"):
        image_rows("other", source, PROMPTS, [0])


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (
            [{"file": "9.png", "prompt": "a cat"}, {"prompt": "a dog"}],
            "row 1 .* names no file under 'file', as others do",
        ),
        ([{"file": "9.png", "prompt": "a cat"}, {"file": "9.png", "prompt": "a dog"}], r"names 9\.png 2 times"),
    ],
)
def test_a_list_that_names_no_file_or_one_twice_is_refused(images, rows, problem):
    (images / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=problem):
        image_rows("other", find_source(str(images)), PROMPTS, [0])


def test_nothing_is_laid_on_finished_images(images, lora):
    with pytest.raises(ValueError, match="is a folder of finished images; nothing can be laid on it"):
        find_source(str(images), lora=str(lora))


def test_a_model_folder_is_no_folder_of_images(tiny_folder):
    assert not find_source(str(tiny_folder)).is_images
    assert not find_source("owner/name").is_images
