from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from eval.scorers import dino
from eval.scorers.base import cropped_pixels
from eval.scorers.dino import MEAN, STD, Dino
from tests.eval.scorers import layouts, plain_blip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The published layout with two blocks: a folder, and its tensors."""
    folder = tmp_path_factory.mktemp("dino")
    generator = torch.Generator().manual_seed(0)
    shapes = layouts.vit("", 2, 384, 197)
    state = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(state, folder / "model.safetensors")
    torch.save(state, folder / "dino_deitsmall16_pretrain.pth")
    real = timm.create_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", lambda *names, **settings: real(*names, **settings, depth=2))
        yield folder, state


def by_hand(images, state):
    pixels = cropped_pixels(images, 256, 224, MEAN, STD)
    named = {f"blip.visual_encoder.{name}": part for name, part in state.items()}
    return torch.nn.functional.normalize(plain_blip.look(pixels, named, 6, 2)[:, 0], dim=-1)


def test_score_is_the_mean_cosine_with_the_references(tiny, images):
    folder, state = tiny
    several = [images[1:], images[:1]]
    seen = by_hand(images, state)
    expected = [float((seen[1:] @ seen[2]).mean()), float(seen[0] @ seen[3])]
    for place in (folder, folder / "dino_deitsmall16_pretrain.pth"):
        rows = Dino(weights=str(place)).load()([images[2], images[3]], ["", ""], several)
        assert [row["dino"] for row in rows] == pytest.approx(expected, abs=2e-5)


def test_an_image_is_its_own_best_reference(tiny, images):
    score = Dino(weights=str(tiny[0])).load()
    same, other = score([images[0]] * 2, ["", ""], [[images[0]], [images[1]]])
    assert same["dino"] == pytest.approx(1, abs=1e-5)
    assert other["dino"] < 0.999


def test_score_does_not_depend_on_the_batch(tiny, images, prompts, same_alone):
    several = [images[:2], images[1:], images[2:], images[:1] + images[3:]]
    same_alone(Dino(weights=str(tiny[0])).load(), images, prompts, several, within=2e-5)


def test_pixels_are_those_of_the_original_evaluator():
    from torchvision import transforms

    steps = [transforms.Resize(256, interpolation=transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224)]
    original: Any = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    for size in ((300, 200), (131, 257), (512, 512)):
        image = Image.effect_noise(size, 80).convert("RGB")
        assert torch.allclose(cropped_pixels([image], 256, 224, MEAN, STD)[0], original(image), atol=1e-5)


def test_references_are_looked_at_once(tiny, images, monkeypatch):
    looked = []
    real = dino.cropped_pixels
    monkeypatch.setattr(
        dino, "cropped_pixels", lambda pictures, *rest: looked.append(len(pictures)) or real(pictures, *rest)
    )
    score = Dino(weights=str(tiny[0])).load()
    for _ in range(2):
        score(images[:2], ["", ""], [images[2:], [image.copy() for image in images[2:]]])
    assert looked == [2, 2, 2]


def test_an_image_without_references_is_refused(tiny, images):
    with pytest.raises(ValueError, match="no reference images"):
        Dino(weights=str(tiny[0])).load()(images[:2], ["", ""], [images[:1], []])
