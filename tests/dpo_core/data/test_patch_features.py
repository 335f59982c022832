import pytest
import torch
from safetensors.torch import load_file

from dpo_core.data.patch_features import PatchFeatures, VisionSection, image_side, load_vision_config, patch_size
from tests.tiny_models import make_tiny_sd
from tests.tiny_vision import make_tiny_vision

CPU = torch.device("cpu")


def pixels(count: int, side: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "dinov3"])
def test_every_patch_of_every_kind_of_model_has_features_in_reading_order(tmp_path, kind):
    see = PatchFeatures(VisionSection(model=str(make_tiny_vision(tmp_path, kind))), 24, CPU)
    assert (see.side, see.patch, see.patches) == (24, 4, 36)
    images = pixels(1, 24)
    changed = images.clone()
    changed[:, :, 4:8, 20:24] = 255 - changed[:, :, 4:8, 20:24]
    moved = (see(changed) - see(images)).norm(dim=-1)[0]
    assert moved.shape == (36,)
    assert moved.argmax() == 1 * 6 + 5


def test_features_are_those_of_the_model_itself_on_normalised_pixels(tmp_path):
    from transformers import Dinov2Model

    folder = make_tiny_vision(tmp_path)
    section = VisionSection(model=str(folder), image_mean=[0.5, 0.4, 0.3], image_std=[0.1, 0.2, 0.3])
    images = pixels(2, 16)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ([0.5, 0.4, 0.3], [0.1, 0.2, 0.3]))
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(folder)((images / 255 - mean) / std).last_hidden_state[:, 1:]
    torch.testing.assert_close(PatchFeatures(section, 16, CPU)(images), expected)


def test_a_larger_side_gives_more_patches_of_the_same_image(tmp_path):
    folder = str(make_tiny_vision(tmp_path))
    assert PatchFeatures(VisionSection(model=folder, side=32), 16, CPU)(pixels(2, 16)).shape == (2, 64, 16)


def test_the_side_is_the_resolution_in_whole_patches():
    section = VisionSection()
    assert [image_side(section, resolution, 14) for resolution in (504, 512, 518)] == [504, 518, 518]
    with pytest.raises(ValueError, match=r"vision\.side: 512 is not a multiple of the model's patches of 14 pixels"):
        image_side(VisionSection(side=512), 512, 14)


def test_models_that_cannot_compare_patches_are_refused_by_name(tmp_path):
    nowhere = VisionSection(model=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"vision\.model: .*nowhere' cannot be loaded"):
        PatchFeatures(nowhere, 16, CPU)
    text = VisionSection(model=str(make_tiny_sd(tmp_path / "sd") / "text_encoder"))
    with pytest.raises(ValueError, match="is a clip_text_model without square patches"):
        patch_size(text, load_vision_config(text))


def test_weights_that_could_run_code_are_not_read(tmp_path):
    folder = make_tiny_vision(tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="cannot be loaded"):
        PatchFeatures(VisionSection(model=str(folder)), 16, CPU)
