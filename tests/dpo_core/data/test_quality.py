"""Patch quality maps, and the image prompt that belongs with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from dpo_core.data.batches import DataSection, PairBatch, Share, step_batches
from dpo_core.data.loader import BatchLoader
from dpo_core.data.plan import Plan
from dpo_core.data.schema import SCHEMA
from tests.same_batches import flat, pixels_of, take
from tests.tiny_data import jpeg

MAPS = pa.list_(pa.list_(pa.float32()))


def grid(value: float, height: int = 2, width: int = 3) -> list[list[float]]:
    return [[value + 10 * row + column for column in range(width)] for row in range(height)]


def write(folder: Path, maps: list[tuple[Any, Any]], kind: pa.DataType = MAPS, side: int = 32) -> DataSection:
    """Row i prefers image i % 2."""
    schema = pa.schema([*SCHEMA, ("patch_quality_0", kind), ("patch_quality_1", kind)])
    rows = [
        dict.fromkeys(schema.names)
        | {"caption": "a picture", "ranking_id": index, "label_0": float(1 - index % 2), "label_1": float(index % 2)}
        | {"jpg_0": jpeg(2 * index, side), "jpg_1": jpeg(2 * index + 1, side)}
        | {"patch_quality_0": first, "patch_quality_1": second}
        for index, (first, second) in enumerate(maps)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "a.parquet")
    return DataSection(paths=[str(folder)], resolution=32, quality=True, max_quarantined_share=1)


def everything(section: DataSection) -> PairBatch:
    plan = Plan.build(section)
    slots = [plan.slot(index, 0) for index in range(plan.rows)]
    return BatchLoader(section, 0, plan.cache, plan.quality_shape).load(slots)


def test_the_map_of_the_chosen_image_comes_first(tmp_path):
    section = write(tmp_path, [(grid(0.25), grid(0.5)), (grid(0.75), grid(1.0))])
    assert Plan.build(section).quality_shape == (2, 3)
    batch = everything(section)
    assert batch.quality is not None
    assert batch.quality.dtype == torch.float32
    assert batch.quality.tolist() == [[grid(0.25), grid(0.5)], [grid(1.0), grid(0.75)]]


def test_rows_without_a_proper_map_leave_an_empty_slot_and_a_reason(tmp_path):
    good = grid(0.5)
    wrong = [None, [], [[1.0, 2.0, 3.0], None], [[1.0, 2.0, 3.0], [1.0, 2.0]], [[1.0, 2.0, None]] * 2]
    wrong += [[[1.0, 2.0, float("nan")]] * 2, grid(0.5, 3, 2), [[]]]
    batch = everything(write(tmp_path, [(None, good), *((good, bad) for bad in wrong), (good, good)]))
    assert batch.weights.tolist() == [0] * 9 + [1]
    assert batch.quality is not None
    assert not batch.quality[:9].any()
    assert not pixels_of(batch)[:9].any()
    found = [(record.row, str(record.reason), record.detail) for record in batch.quarantined]
    assert found == [
        (0, "quality_missing", "patch_quality_0"),
        (1, "quality_missing", "patch_quality_1"),
        (2, "quality_missing", "patch_quality_1"),
        (3, "quality_malformed", "patch_quality_1 is no grid of numbers"),
        (4, "quality_malformed", "patch_quality_1 is no grid of numbers"),
        (5, "quality_malformed", "patch_quality_1 is no grid of numbers"),
        (6, "quality_malformed", "patch_quality_1 holds infinity or NaN"),
        (7, "quality_malformed", "patch_quality_1 is 3 x 2, the first of the set 2 x 3"),
        (8, "quality_malformed", "patch_quality_1 is no grid of numbers"),
    ]


def test_a_set_without_a_single_map_is_refused(tmp_path):
    section = write(tmp_path, [(None, None), (None, [])])
    with pytest.raises(ValueError, match="not one row has a patch quality map"):
        Plan.build(section)


def test_missing_and_mistyped_columns_are_named(tmp_path):
    section = write(tmp_path, [(0.5, 0.5)], pa.float32())
    with pytest.raises(ValueError, match="patch_quality_0 has type float; it must be a list of lists of numbers"):
        Plan.build(section)
    pq.write_table(pq.read_table(tmp_path / "a.parquet").drop(["patch_quality_1"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"patch_quality_1 are missing \(data.quality=true asks for them\)"):
        Plan.build(section)


def test_maps_are_left_alone_unless_asked_for(tmp_path):
    section = write(tmp_path, [(None, None)]).model_copy(update={"quality": False})
    assert everything(section).quality is None


@pytest.mark.parametrize("change", [{"crop": "random"}, {"flip": "pair"}, {"rejected": "other"}, {"rejected": "blur"}])
def test_maps_that_would_not_lie_on_the_image_are_refused(change):
    name, value = next(iter(change.items()))
    with pytest.raises(ValidationError, match=rf"centre crops of a row's own images, but .*{name}={value}"):
        DataSection.model_validate({"quality": True, **change})


def test_the_image_prompt_is_the_chosen_image_placed_like_its_crop(tmp_path):
    section = write(tmp_path, [(None, None)] * 4, side=300).model_copy(
        update={"quality": False, "prompt_image": True, "resolution": 224, "crop": "random", "flip": "independent"}
    )
    for batch in flat(take(step_batches(Plan.build(section), section, Share(0, 4, 4)), 3)):
        assert batch.prompt_image is not None
        assert batch.prompt_image.shape == (4, 3, 224, 224)
        assert torch.equal(batch.prompt_image, pixels_of(batch)[:, 0])


def test_one_draw_drops_the_caption_the_image_prompt_both_or_neither(tmp_path):
    section = write(tmp_path, [(None, None)] * 8).model_copy(update={"quality": False, "prompt_image": True})
    shares = {"caption_dropout": 0.2, "prompt_image_dropout": 0.3, "joint_dropout": 0.1}
    plan = Plan.build(section)
    seen: dict[tuple[bool, bool], int] = {}
    dropped = section.model_copy(update=shares)
    alone = section.model_copy(update={"caption_dropout": 0.2})
    for batch, captions in zip(
        flat(take(step_batches(plan, dropped, Share(0, 8, 8)), 50)),
        flat(take(step_batches(plan, alone, Share(0, 8, 8)), 50)),
        strict=True,
    ):
        assert batch.prompt_image is not None
        for caption, other, image in zip(
            batch.chosen_captions, batch.rejected_captions, batch.prompt_image, strict=True
        ):
            assert caption == other
            key = (caption == "", not image.any())
            seen[key] = seen.get(key, 0) + 1
        gone = [caption == "" for caption in captions.chosen_captions]
        only_text = [
            not caption and bool(image.any())
            for caption, image in zip(batch.chosen_captions, batch.prompt_image, strict=True)
        ]
        assert gone == only_text
    counts = np.array([seen[key] for key in ((True, False), (False, True), (True, True), (False, False))])
    assert np.all(np.abs(counts / 400 - [0.2, 0.3, 0.1, 0.4]) < 0.07)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt_image": True, "caption_dropout": 0.5, "joint_dropout": 0.6}, "together they must be at most 1"),
        ({"joint_dropout": 0.1}, "set prompt_image=true"),
        ({"prompt_image_dropout": 0.1}, "set prompt_image=true"),
    ],
)
def test_dropouts_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        DataSection.model_validate(given)
