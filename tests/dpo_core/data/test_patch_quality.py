import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpo_core.data.patch_quality import best_matches, pair_quality, to_grid, to_quality


def features(*patches: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor([patches], dtype=torch.float32)


def test_every_patch_is_judged_by_its_best_match_in_the_other_image():
    first = features((1, 0), (0, 2), (3, 3))
    second = features((5, 0), (0, -1), (1, 0))
    ours, theirs = best_matches(first, second)
    # (1,0) is there; (0,2) is at right angles to the nearest; (3,3) is half way to (1,0).
    torch.testing.assert_close(ours, torch.tensor([[1.0, 0.0, 0.5**0.5]]))
    torch.testing.assert_close(theirs, torch.tensor([[1.0, 0.0, 1.0]]))


def test_both_directions_agree_with_a_plain_double_loop():
    torch.manual_seed(0)
    first, second = torch.randn(2, 5, 7), torch.randn(2, 9, 7)
    ours, theirs = best_matches(first, second)
    for n in range(2):
        table = [[float(torch.dot(a, b) / (a.norm() * b.norm())) for b in second[n]] for a in first[n]]
        assert ours[n].tolist() == pytest.approx([max(row) for row in table], abs=1e-6)
        assert theirs[n].tolist() == pytest.approx([max(column) for column in zip(*table, strict=True)], abs=1e-6)


def test_a_patch_without_features_matches_nothing():
    ours, _ = best_matches(features((0, 0)), features((1, 0)))
    assert ours.tolist() == [[0.0]]


def test_the_place_of_the_match_plays_no_part():
    torch.manual_seed(0)
    first, second = torch.randn(1, 16, 4), torch.randn(1, 16, 4)
    ours, _ = best_matches(first, second)
    moved, _ = best_matches(first, second[:, torch.randperm(16)])
    torch.testing.assert_close(ours, moved)


@given(st.floats(-1, 0.4), st.floats(0.5, 1))
def test_quality_is_linear_between_the_two_cosines_and_never_leaves_zero_to_one(low, high):
    cosines = torch.tensor([-1.0, low, (low + high) / 2, high, 1.0])
    quality = to_quality(cosines, low, high)
    torch.testing.assert_close(quality, torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]), atol=1e-5, rtol=0)


def test_a_grid_of_the_same_size_is_not_touched():
    maps = torch.rand(2, 4, 4)
    assert to_grid(maps, (4, 4)) is maps


def test_a_finer_grid_interpolates_and_a_coarser_one_averages():
    maps = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    fine = to_grid(maps, (2, 4))
    torch.testing.assert_close(fine, torch.tensor([[[0.0, 0.25, 0.75, 1.0]] * 2]))
    stripes = torch.tensor([0.0, 1, 1, 0, 0, 1, 1, 0]).expand(1, 8, 8)
    coarse = to_grid(stripes, (2, 2))
    torch.testing.assert_close(coarse, torch.full((1, 2, 2), 0.55), atol=0.1, rtol=0)


def test_maps_lie_where_their_patches_lie():
    marked = torch.zeros(1, 4, 2)
    marked[0, :, 0] = 1
    marked[0, 1] = torch.tensor([0.0, 1.0])  # upper right of the second image
    plain = torch.zeros(1, 4, 2)
    plain[0, :, 0] = 1
    quality = pair_quality(plain, marked, size=(2, 2))
    assert quality.tolist() == [[[[1, 1], [1, 1]], [[1, 0], [1, 1]]]]


def test_exchanging_the_images_exchanges_the_maps():
    torch.manual_seed(0)
    first, second = torch.randn(3, 16, 5), torch.randn(3, 16, 5)
    forth = pair_quality(first, second, size=(8, 8), low=-1.0)
    back = pair_quality(second, first, size=(8, 8), low=-1.0)
    torch.testing.assert_close(forth, back.flip(1))
    assert forth.shape == (3, 2, 8, 8)


def test_an_image_has_full_quality_beside_itself():
    same = torch.randn(1, 16, 5)
    torch.testing.assert_close(pair_quality(same, same, size=(6, 6)), torch.ones(1, 2, 6, 6))
