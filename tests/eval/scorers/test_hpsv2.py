import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from eval.scorers.base import CLIP_MEAN, CLIP_STD
from eval.scorers.hpsv2 import HPSv2, padded_pixels
from tests.eval.scorers.plain_clip import image_features, text_features

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 28, "layers": 2, "width": 32, "head_width": 16, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module", autouse=True)
def tiny_architecture():
    real = open_clip.get_model_config("ViT-H-14")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip, "get_model_config", lambda name: TINY if name == "ViT-H-14" else real)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Both versions, in the layout of the published files: half precision, under ``state_dict``."""
    place = tmp_path_factory.mktemp("hps")
    for seed, name in enumerate(("HPS_v2_compressed.pt", "HPS_v2.1_compressed.pt")):
        torch.manual_seed(seed)
        state = open_clip.CLIP(**TINY).state_dict()
        state = {name: (part + 0.1 * torch.randn_like(part) * (part.ndim > 0)).half() for name, part in state.items()}
        torch.save({"epoch": 1, "state_dict": state}, place / name)
    return place


@pytest.mark.parametrize(("version", "file"), [("v2.0", "HPS_v2_compressed.pt"), ("v2.1", "HPS_v2.1_compressed.pt")])
def test_score_is_a_hundred_times_the_cosine_of_a_clip_written_out_by_hand(folder, images, prompts, version, file):
    stored = torch.load(folder / file, weights_only=True)["state_dict"]
    state = {name: part.float() for name, part in stored.items()}
    seen = image_features(padded_pixels(images, 28), state, 2)
    said = text_features(open_clip.tokenize(prompts), state, 2)
    expected = 100 * torch.cosine_similarity(seen, said)
    for place in (folder, folder / file):
        rows = HPSv2(version=version, weights=str(place)).load()(images, prompts)
        assert [row["hps"] for row in rows] == pytest.approx(expected.tolist(), abs=2e-4)


def test_score_does_not_depend_on_the_batch(folder, images, prompts, same_alone):
    same_alone(HPSv2(weights=str(folder)).load(), images, prompts, within=2e-4)


@pytest.mark.parametrize(("dtype", "within"), [("float16", 0.2), ("bfloat16", 2.0)])
def test_half_precision_towers_agree(folder, images, prompts, dtype, within):
    exact = HPSv2(weights=str(folder)).load()(images, prompts)
    for row, other in zip(HPSv2(weights=str(folder), dtype=dtype).load()(images, prompts), exact, strict=True):
        assert row["hps"] == pytest.approx(other["hps"], abs=within)


def test_versions_have_names_and_weights_of_their_own(folder):
    old, new = HPSv2(version="v2.0", weights=str(folder)), HPSv2(version="v2.1", weights=str(folder))
    assert (old.label, new.label) == ("hpsv2.0", "hpsv2.1")
    assert HPSv2(weights=str(folder), antialias=False).identity().preprocessing != new.identity().preprocessing
    assert old.identity().weights != new.identity().weights


def test_pixels_are_padded_to_a_square_and_not_cropped():
    wide = Image.new("RGB", (112, 57), "white")
    pixels = padded_pixels([wide], 56)
    shown = pixels * torch.tensor(CLIP_STD).view(3, 1, 1) + torch.tensor(CLIP_MEAN).view(3, 1, 1)
    # 57 * 56 / 112 = 28.5 rounds to the even 28: fourteen black rows above and below.
    assert torch.allclose(shown[0, :, 14:42], torch.ones(3, 28, 56), atol=1e-5)
    assert torch.allclose(shown[0, :, :14], torch.zeros(3, 14, 56), atol=1e-6)
    assert torch.allclose(shown[0, :, 42:], torch.zeros(3, 14, 56), atol=1e-6)


def test_the_odd_row_of_the_frame_is_below():
    shown = padded_pixels([Image.new("RGB", (100, 51), "white")], 100)
    rows = (shown[0].sum(0).mean(-1) > 0).nonzero()[:, 0]
    assert (rows[0], rows[-1]) == (24, 74)


def test_a_half_pixel_is_rounded_as_the_original_does():
    """0.175 x 660 is just below 115.5; 660 x 224 / 1280 would be it, and rounded to 116."""
    shown = padded_pixels([Image.new("RGB", (1280, 660), "white")])
    assert int((shown[0, 0, :, 0] > 1).sum()) == 115


def test_an_image_of_the_right_size_is_only_normalised():
    noise = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    expected = (noise / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    assert np.allclose(padded_pixels([Image.fromarray(noise)], 28)[0].permute(1, 2, 0), expected, atol=1e-5)


def test_antialiasing_decides_how_much_noise_is_left():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8))
    smooth, rough = padded_pixels([noise], 28), padded_pixels([noise], 28, antialias=False)
    assert smooth.std() < 0.3 * rough.std()


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    torch.save({"state_dict": {"unet.weight": torch.zeros(2)}}, tmp_path / "HPS_v2.1_compressed.pt")
    with pytest.raises(ValueError, match=r"does not fit CLIP: missing: .* and \d+ more; left over: unet\.weight"):
        HPSv2(weights=str(tmp_path)).load()
