from itertools import product
from pathlib import Path

import numpy as np
import pytest

from dpo_core.data.sources.shapes import COLOURS, OPPOSITE, RELATIONS, SHAPES, SIZE, captions, draw, is_heldout


def test_the_world_has_720_captions_of_two_shapes_and_holds_out_144():
    assert [len(captions(split, singles=False)) for split in ("all", "train", "heldout")] == [720, 576, 144]
    assert len(captions("train", singles=True)) == 591
    assert captions("heldout", singles=True) == captions("heldout", singles=False)


def test_splits_are_disjoint_and_agree_with_is_heldout():
    assert not set(captions("train", singles=True)) & set(captions("heldout", singles=False))
    assert all(is_heldout(caption) for caption in captions("heldout", singles=False))
    assert not any(is_heldout(caption) for caption in captions("train", singles=True))


def test_both_wordings_of_a_scene_share_one_fate():
    for caption in captions("all", singles=False):
        relation = next(r for r in RELATIONS if f" {r} " in caption)
        first, second = caption.split(f" {relation} ")
        assert is_heldout(caption) == is_heldout(f"{second} {OPPOSITE[relation]} {first}")


def test_training_shows_every_object_at_both_places_of_every_relation():
    train = captions("train", singles=False)
    for colour, shape, relation in product(COLOURS, SHAPES, RELATIONS):
        assert any(caption.startswith(f"a {colour} {shape} {relation} ") for caption in train)
        assert any(caption.endswith(f" {relation} a {colour} {shape}") for caption in train)


def test_a_drawing_is_a_function_of_caption_and_seed():
    one = draw("a red circle above a blue square", 3)
    assert one.shape == (SIZE, SIZE, 3)
    assert one.dtype == np.uint8
    assert np.array_equal(one, draw("a red circle above a blue square", 3))
    assert not np.array_equal(one, draw("a red circle above a blue square", 4))


def test_shapes_never_touch_the_border():
    for seed, caption in enumerate(captions("all", singles=True)):
        picture = draw(caption, seed)
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert (border == border[0]).all(), caption


@pytest.mark.parametrize("caption", ["a pink circle", "a red circle above a red square", "red circle", ""])
def test_a_caption_outside_the_world_is_refused(caption):
    with pytest.raises(ValueError, match="no picture for the caption"):
        draw(caption, 0)


def test_the_prompt_set_of_evaluation_is_the_heldout_split():
    prompts = Path(__file__).parents[4] / "eval" / "prompts" / "shapes_heldout.txt"
    assert prompts.read_text().splitlines() == captions("heldout", singles=False)
