import numpy as np
import pytest
import torch

from dpo_core.data.batches import DataSection, Share, step_batches
from dpo_core.data.plan import Plan
from dpo_core.data.rejects import add_noise, blur, make_worse, swap_cells
from tests.same_batches import flat, pixels_of, take
from tests.tiny_data import make_pairs

RAMP = np.arange(64 * 64, dtype=np.uint32).reshape(64, 64, 1).astype(np.uint8).repeat(3, axis=2)
"""Every 8 x 8 cell of a row differs from its neighbours."""


def cells(image: np.ndarray) -> list[np.ndarray]:
    side = len(image) // 8
    return [image[y * side : (y + 1) * side, x * side : (x + 1) * side] for y in range(8) for x in range(8)]


def test_a_blur_erases_what_is_finer_than_four_pixels_and_keeps_what_is_coarser():
    fine = np.indices((64, 64)).sum(0) % 2 * 255
    coarse = np.indices((64, 64))[1] // 32 * 255
    blurred = [blur(image.astype(np.uint8)[:, :, None].repeat(3, axis=2)) for image in (fine, coarse)]
    assert np.all(np.abs(blurred[0].astype(int) - 127) <= 2)
    assert np.all(blurred[1][:, :24] <= 10)
    assert np.all(blurred[1][:, 40:] >= 245)


@pytest.mark.parametrize("side", [8, 10, 33])
def test_every_side_can_be_made_worse_without_changing_its_size(side):
    crop = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    for kind in ("blur", "grid", "noise"):
        worse = make_worse(kind, crop, 0, 0, "pair")
        assert worse.shape == crop.shape
        assert worse.dtype == np.uint8
        assert not np.array_equal(worse, crop)


@pytest.mark.parametrize(("first", "distance", "second"), [(0, 1, 1), (3, 63, 2), (60, 10, 6), (63, 1, 0)])
def test_two_cells_change_places_and_nothing_else_moves(first, distance, second):
    image = np.random.default_rng(1).integers(0, 256, (70, 70, 3), dtype=np.uint8)
    before, after = cells(image), cells(swap_cells(image, first, distance))
    assert np.array_equal(after[first], before[second])
    assert np.array_equal(after[second], before[first])
    assert all(np.array_equal(after[cell], before[cell]) for cell in range(64) if cell not in (first, second))
    assert np.array_equal(swap_cells(image, first, distance)[64:], image[64:])


def test_cells_that_show_the_same_are_passed_over():
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    image[6:8, 4:6] = 200
    swapped = swap_cells(image, 10, 1)
    assert np.all(swapped[2:4, 4:6] == 200)
    assert swapped.sum() == image.sum()
    assert not swapped[6:8, 4:6].any()
    assert np.array_equal(swap_cells(np.zeros_like(image), 10, 1), np.zeros_like(image))


def test_noise_has_its_deviation_and_stays_in_range():
    grey = np.full((128, 128, 3), 127, dtype=np.uint8)
    difference = add_noise(grey, torch.Generator().manual_seed(0)).astype(float) - 127
    assert abs(difference.mean()) < 1
    assert 49 < difference.std() < 51
    white = add_noise(np.full_like(grey, 255), torch.Generator().manual_seed(0))
    assert white.min() < 150
    assert 0.45 < (white == 255).mean() < 0.55


@pytest.mark.parametrize("kind", ["grid", "noise"])
def test_what_is_random_in_a_made_image_belongs_to_seed_epoch_and_pair(kind):
    first = make_worse(kind, RAMP, 1, 2, "pair")
    assert np.array_equal(make_worse(kind, RAMP, 1, 2, "pair"), first)
    for other in ((0, 2, "pair"), (1, 3, "pair"), (1, 2, "another")):
        assert not np.array_equal(make_worse(kind, RAMP, *other), first)


@pytest.mark.parametrize("kind", ["blur", "grid", "noise"])
def test_the_made_image_comes_from_the_chosen_crop_and_has_its_caption_and_geometry(tmp_path, kind):
    paths = [str(make_pairs(tmp_path, 6, side=40))]
    given = DataSection(paths=paths, resolution=32, crop="random", flip="independent")
    section = given.model_copy(update={"rejected": kind})
    plan, share = Plan.build(given), Share(0, 6, 6)
    (chosen,) = flat(take(step_batches(plan, given, share), 1))
    (batch,) = flat(take(step_batches(plan, section, share), 1))
    assert torch.equal(pixels_of(batch)[:, 0], pixels_of(chosen)[:, 0])
    for pair_id, (one, other) in zip(batch.pair_ids, pixels_of(batch), strict=True):
        made = make_worse(kind, one.permute(1, 2, 0).numpy(), 0, 0, pair_id)
        assert np.array_equal(other.permute(1, 2, 0).numpy(), made)
    assert batch.chosen_captions == batch.rejected_captions
    assert batch.geometry is not None
    assert chosen.geometry is not None
    assert torch.equal(batch.geometry, chosen.geometry[:, :1].repeat(1, 2, 1))
