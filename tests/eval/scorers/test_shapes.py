import io
import math

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from dpo_core.data.sources.shapes import COLOURS, OPPOSITE, RELATIONS, SHAPES, captions, draw
from eval.scorers.shapes import Shapes, check, find, parse

CAPTION = "a red circle above a blue square"
SOME = captions("all", singles=True)[::9]


def canvas() -> np.ndarray:
    return np.full((64, 64, 3), 200, np.uint8)


def jpeg(picture: np.ndarray) -> Image.Image:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=75)
    return Image.open(file)


def share_correct(change) -> float:
    return float(np.mean([check(change(draw(caption, 7 + i)), caption)["correct"] for i, caption in enumerate(SOME)]))


def test_drawings_of_the_world_pass():
    assert share_correct(lambda picture: picture) == 1.0


def test_blur_and_noise_of_a_decoder_are_forgiven():
    rng = np.random.default_rng(0)

    def worn(picture):
        soft = ndimage.gaussian_filter(picture.astype(float), (0.7, 0.7, 0)) + rng.normal(0, 6, picture.shape)
        return soft.clip(0, 255).astype(np.uint8)

    assert share_correct(worn) >= 0.98


def test_jpeg_is_forgiven():
    assert share_correct(jpeg) >= 0.93


def test_wrong_captions_fail():
    for i, caption in enumerate(captions("all", singles=False)[::29]):
        picture = draw(caption, i)
        ((colour, shape), (other, form)), relation = parse(caption)
        third = next(name for name in COLOURS if name not in (colour, other))
        shapes = [name for name in SHAPES if name != form]
        wrong = [
            *(f"a {colour} {shape} {r} a {other} {form}" for r in RELATIONS if r != relation),
            f"a {other} {shape} {relation} a {colour} {form}",
            f"a {third} {shape} {relation} a {other} {form}",
            *(f"a {colour} {shape} {relation} a {other} {name}" for name in shapes),
            f"a {colour} {shape}",
        ]
        assert not any(check(picture, text)["correct"] for text in wrong), caption


def test_the_other_wording_of_a_scene_passes():
    ((colour, shape), (other, form)), relation = parse(CAPTION)
    assert relation
    assert check(draw(CAPTION, 1), f"a {other} {form} {OPPOSITE[relation]} a {colour} {shape}")["correct"] == 1


def test_parts_say_what_is_wrong():
    picture = draw(CAPTION, 0)
    assert check(picture, CAPTION)["score"] == 1
    reversed_ = check(picture, "a red circle below a blue square")
    assert (reversed_["count"], reversed_["colour"], reversed_["shape"], reversed_["relation"]) == (1, 1, 1, 0)
    recoloured = check(picture, "a red circle above a green square")
    assert (recoloured["colour"], recoloured["shape"], recoloured["score"]) == (0, 1, (1 + 0.5 + 1 + 1) / 4)
    single = check(picture, "a red circle")
    assert single["count"] == 0
    assert math.isnan(single["relation"])


def test_an_empty_picture_earns_nothing():
    result = check(canvas(), CAPTION)
    assert (result["correct"], result["score"], result["quality"]) == (0, 0, 0)


def broken_circle(kind: str) -> np.ndarray:
    y, x = np.mgrid[:64, :64] - 32
    picture = canvas()
    inside = {
        "bitten": (x**2 + y**2 <= 100) & ~((x > 0) & (y > 0)),
        "ring": (x**2 + y**2 <= 144) & (x**2 + y**2 >= 40),
        "ellipse": x**2 / 169 + y**2 / 49 <= 1,
        "bean": (x**2 + y**2 <= 100) | ((x - 7) ** 2 + (y - 9) ** 2 <= 36),
        "half": (x**2 + y**2 <= 100) & (x >= -1),
        "speck": x**2 + y**2 <= 9,
        "two-coloured": x**2 + y**2 <= 100,
    }[kind]
    picture[inside] = (219, 40, 40)
    if kind == "two-coloured":
        picture[inside & (x > 2)] = (40, 90, 219)
    return picture


@pytest.mark.parametrize("kind", ["bitten", "ring", "ellipse", "bean", "half", "speck", "two-coloured"])
def test_a_broken_shape_is_no_shape(kind):
    assert check(broken_circle(kind), "a red circle")["shape"] == 0


def test_a_triangle_that_points_down_is_no_triangle():
    assert all(check(draw("a green triangle", seed)[::-1], "a green triangle")["shape"] == 0 for seed in range(10))


def test_anything_else_in_the_picture_spoils_the_count():
    picture = draw("a red circle", 0).copy()
    picture[2:8, 2:8] = 255 - picture[2:8, 2:8]
    assert len(find(picture)) == 2
    assert check(picture, "a red circle")["correct"] == 0


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_line_of_one_pixel_is_something_that_has_a_quality():
    for upright in (True, False):
        line = np.full((64, 64, 3), 255, dtype=np.uint8)
        line[20:44, 30:31] = (220, 30, 30)
        image = Image.fromarray(line if upright else line.swapaxes(0, 1).copy())
        found = check(image, "a red circle")
        assert found["correct"] == 0.0
        assert 0 <= found["quality"] <= 1, "not NaN"


def test_a_larger_picture_is_read_as_well():
    large = Image.fromarray(draw(CAPTION, 0)).resize((256, 256), Image.Resampling.BICUBIC)
    assert check(large, CAPTION)["correct"] == 1


@pytest.mark.parametrize("caption", ["a pink circle", "two dogs", ""])
def test_a_caption_outside_the_world_is_refused(caption):
    with pytest.raises(ValueError, match="cannot check the caption"):
        check(canvas(), caption)


def test_the_scorer_returns_its_columns_for_every_image():
    scorer = Shapes()
    rows = scorer.load()([Image.fromarray(draw(CAPTION, seed)) for seed in range(2)], [CAPTION] * 2)
    assert [set(row) for row in rows] == [set(scorer.columns)] * 2
    assert scorer.primary in scorer.columns
    assert scorer.tags(CAPTION) == {"relation": "above"}
