import json

import open_clip
import pytest
import torch
from PIL import Image

from eval.scorers.clip import CLIPScore

CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG["model_cfg"])
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder, model.eval()


def test_score_is_a_hundred_times_the_cosine(tiny):
    folder, model = tiny
    image, prompt = Image.new("RGB", (32, 32), (200, 30, 60)), "a red wall"
    score = CLIPScore(model=f"local-dir:{folder}", weights=None).load()
    pixels = (torch.tensor([200, 30, 60]).view(1, 3, 1, 1).expand(1, 3, 32, 32) / 255 - 0.5) / 0.5
    with torch.inference_mode():
        seen, said = model.encode_image(pixels), model.encode_text(open_clip.tokenize([prompt]))
    expected = 100 * torch.cosine_similarity(seen, said).item()
    assert score([image], [prompt])[0] == pytest.approx({"clip": expected}, abs=1e-3)


def test_score_does_not_depend_on_the_batch(tiny):
    score = CLIPScore(model=f"local-dir:{tiny[0]}", weights=None).load()
    images = [Image.new("RGB", (40, 24), color) for color in ("red", "green", "blue")]
    prompts = ["red", "a green wall", "something blue and very long " * 30]
    together = score(images, prompts)
    alone = [score([image], [prompt])[0] for image, prompt in zip(images, prompts, strict=True)]
    assert [row["clip"] for row in together] == pytest.approx([row["clip"] for row in alone], abs=1e-3)


def test_the_prefix_is_put_before_the_prompt(tiny):
    image = Image.new("RGB", (32, 32), "red")
    plain = CLIPScore(model=f"local-dir:{tiny[0]}", weights=None).load()
    prefixed = CLIPScore(model=f"local-dir:{tiny[0]}", weights=None, prefix="A photo depicts ").load()
    assert prefixed([image], ["a wall"]) == plain([image], ["A photo depicts a wall"])


def test_openai_weights_with_the_wrong_activation_are_refused():
    with pytest.raises(ValueError, match="allowed: ViT-L-14-quickgelu"):
        CLIPScore(model="ViT-L-14", weights="openai").load()


def test_an_unknown_architecture_is_one_clear_error():
    with pytest.raises(ValueError, match="cannot load 'ViT-L-15'"):
        CLIPScore(model="ViT-L-15", weights="laion2b").load()
