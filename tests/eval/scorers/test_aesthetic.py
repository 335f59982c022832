from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from eval.scorers.aesthetic import Aesthetic, load_head, rate

CASES = Path(__file__).parents[2] / "assets" / "aesthetic_head_cases.safetensors"


def test_shipped_head_gives_the_scores_recorded_from_the_published_network():
    cases = load_file(CASES)
    assert torch.allclose(rate(cases["embeds"], *load_head()), cases["score"], atol=2e-5)


def test_shipped_head_gives_the_published_probe_values():
    weight, bias = load_head()
    first = torch.zeros(1, 768)
    first[0, 0] = 1
    assert rate(first, weight, bias).item() == pytest.approx(4.545052528, abs=2e-6)
    assert rate(torch.ones(1, 768), weight, bias).item() == pytest.approx(4.883284569, abs=2e-6)
    assert bias.item() == pytest.approx(5.236645699, abs=2e-6)


def test_folded_head_equals_the_layers_one_after_the_other(tmp_path):
    torch.manual_seed(1)
    layers = {0: torch.nn.Linear(12, 8), 2: torch.nn.Linear(8, 4), 4: torch.nn.Linear(4, 1)}
    save_file(
        {f"layers.{i}.{n}": p.detach() for i, m in layers.items() for n, p in m.named_parameters()},
        tmp_path / "head.safetensors",
    )
    embeddings = torch.nn.functional.normalize(torch.randn(5, 12), dim=-1)
    expected = torch.nn.Sequential(*layers.values())(embeddings)[:, 0]
    assert torch.allclose(rate(embeddings, *load_head(tmp_path / "head.safetensors")), expected, atol=1e-6)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    save_file({"unet.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"is not such a head: its tensors are unet\.weight"):
        load_head(tmp_path / "other.safetensors")


def tiny_tower(folder, dimensions):
    torch.manual_seed(2)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        projection_dim=dimensions,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return str(folder)


def test_images_are_rated_through_the_clip_tower_whatever_the_prompt(tmp_path):
    score = Aesthetic(clip=tiny_tower(tmp_path, 768)).load()
    images = [Image.effect_noise((50, 40), 80), Image.new("RGBA", (64, 64), (255, 0, 0, 128))]
    rows = score(images, ["a", "b"])
    assert rows == score(images, ["c", "d"])
    assert all(np.isfinite(row["aesthetic"]) and abs(row["aesthetic"] - 5.2366) <= 18 for row in rows)


def test_a_tower_of_another_width_is_refused(tmp_path):
    with pytest.raises(ValueError, match="embeds in 16 dimensions, the head needs 768"):
        Aesthetic(clip=tiny_tower(tmp_path, 16)).load()
