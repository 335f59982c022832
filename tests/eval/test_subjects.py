import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval.adapters import given, mean_tokens, projected, view
from eval.subjects import SubjectSection, draw_subjects, load_subject_pipeline
from tests.tiny_ip_adapter import make_tiny_ip_adapter

PHOTOS = Path(__file__).parents[1] / "assets" / "dreambench"
PROMPTS = {"can": ["a can in the snow", "a red can"], "teapot": ["a red teapot"]}


@pytest.fixture(scope="module")
def section(tiny_folder, tiny, tmp_path_factory) -> SubjectSection:
    adapter, encoder = make_tiny_ip_adapter(tmp_path_factory.mktemp("adapter"), tiny.unet)
    return SubjectSection(
        model=str(tiny_folder), adapter=str(adapter), image_encoder=str(encoder), num_inference_steps=2, dtype="float32"
    )


@pytest.fixture(scope="module")
def pipeline(section):
    return load_subject_pipeline(section, "cpu")


def test_one_photo_gives_what_diffusers_makes_of_it(section, pipeline):
    photo = view(PHOTOS / "can" / "00.jpg")
    settings = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "np"}
    tokens = mean_tokens(pipeline, [photo])
    with projected(pipeline):
        ours = pipeline(
            ["a red can"],
            generator=torch.Generator().manual_seed(1),
            ip_adapter_image_embeds=[given([tokens], True)],
            **settings,
        ).images
    states, nothing = pipeline.encode_image(photo_pixels(photo), "cpu", 1, True)
    theirs = pipeline(
        ["a red can"],
        generator=torch.Generator().manual_seed(1),
        ip_adapter_image_embeds=[torch.cat([nothing[None], states[None]])],
        **settings,
    ).images
    assert np.abs(ours - theirs).max() < 1e-5


def photo_pixels(photo):
    from eval.scorers.base import clip_pixels

    return clip_pixels([photo])


def test_tokens_of_several_photos_are_averaged(pipeline):
    views = [view(PHOTOS / "can" / f"0{i}.jpg") for i in range(3)]
    together, nothing = mean_tokens(pipeline, views)
    single = [mean_tokens(pipeline, [one])[0] for one in views]
    assert torch.allclose(together, torch.stack(single).mean(0), atol=1e-5)
    assert not torch.allclose(together, single[0], atol=1e-4)
    assert nothing.shape == together.shape


def test_a_folder_is_filled_and_only_what_is_missing_is_drawn(section, tmp_path):
    assert draw_subjects(section, PHOTOS, tmp_path, prompts=PROMPTS) == 3
    assert sorted(file.name for file in (tmp_path / "can").iterdir()) == ["a can in the snow.png", "a red can.png"]
    first = np.asarray(Image.open(tmp_path / "can" / "a red can.png")).astype(int)
    (tmp_path / "can" / "a red can.png").unlink()
    assert draw_subjects(section, PHOTOS, tmp_path, prompts=PROMPTS) == 1
    again = np.asarray(Image.open(tmp_path / "can" / "a red can.png")).astype(int)
    assert np.abs(first - again).max() <= 2
    assert draw_subjects(section, PHOTOS, tmp_path, prompts=PROMPTS) == 0


def test_the_photos_and_their_weight_change_the_image(section, tmp_path):
    def drawn(**changes):
        folder = tmp_path / "-".join(f"{k}{v}" for k, v in changes.items())
        draw_subjects(section.model_copy(update=changes), PHOTOS, folder, prompts={"can": ["a red can"]})
        return np.asarray(Image.open(folder / "can" / "a red can.png")).astype(int)

    original, one_photo, unseen = drawn(setting="original"), drawn(setting="kosmosg"), drawn(scale=0.0)
    assert not np.array_equal(original, one_photo)
    assert not np.array_equal(original, unseen)


def test_a_photo_is_cropped_to_its_box_and_laid_on_white(tmp_path):
    halves = np.zeros((100, 100, 3), dtype=np.uint8)
    halves[:, 50:] = (255, 0, 0)
    Image.fromarray(halves).save(tmp_path / "p.png")
    seen = np.asarray(view(tmp_path / "p.png", [400, 0, 600, 800]))
    assert seen.shape == (224, 224, 3)
    assert tuple(seen[112, 112]) == (255, 0, 0)
    assert tuple(seen[112, 5]) == (255, 255, 255)


def test_a_missing_box_or_adapter_is_told(section, tmp_path):
    boxed = section.model_copy(update={"boxes": str(tmp_path)})
    (tmp_path / "can").mkdir()
    (tmp_path / "can" / "00.json").write_text(json.dumps({"mask": []}))
    with pytest.raises(ValueError, match="no box of can/00"):
        draw_subjects(boxed, PHOTOS, tmp_path / "out", prompts={"can": ["a red can"]})
    gone = section.model_copy(update={"adapter": str(tmp_path / "gone" / "x.safetensors")})
    with pytest.raises(ValueError, match="cannot load the adapter"):
        load_subject_pipeline(gone, "cpu")
