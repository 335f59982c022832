from typing import ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eval.generate import SamplerSection, plan_images, write_manifest
from eval.score import score_folder, score_images
from eval.scorers.base import Scorer


class Redness(Scorer):
    kind: str = "redness"
    columns: ClassVar[dict[str, str]] = {"red": "mean of the red channel, 0 to 255", "words": "length of the prompt"}
    primary: ClassVar[str] = "red"

    def load(self, device="cpu"):
        def score(images, prompts):
            return [
                {"red": float(np.asarray(image)[..., 0].mean()), "words": float(len(prompt.split()))}
                for image, prompt in zip(images, prompts, strict=True)
            ]

        return score


@pytest.fixture
def folder(tmp_path):
    rows = plan_images("base", "abc", ["a b", "c"], [0], SamplerSection())
    pictures = [Image.new("RGB", (4, 4), (200, 0, 0)), Image.effect_noise((4, 4), 90).convert("RGB")]
    for row, picture in zip(rows, pictures, strict=True):
        (tmp_path / row["file"]).parent.mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / row["file"])
    write_manifest(rows, tmp_path)
    return tmp_path


def test_every_image_and_column_gets_a_row(folder):
    rows = pq.read_table(score_folder(folder, [Redness()])).to_pylist()
    assert [(row["prompt"], row["scorer"], row["column"]) for row in rows] == [
        ("a b", "redness", "red"),
        ("a b", "redness", "words"),
        ("c", "redness", "red"),
        ("c", "redness", "words"),
    ]
    assert rows[0]["score"] == 200.0
    assert rows[1]["score"] == 2.0
    assert [row["blank"] for row in rows] == [True, True, False, False]


def test_the_batch_size_does_not_change_the_rows(folder):
    manifest = pq.read_table(folder / "manifest.parquet").to_pylist()
    scorer = Redness()
    one, many = (score_images(manifest, folder, scorer, scorer.load(), batch_size=size) for size in (1, 8))
    assert one == many


def test_a_scorer_that_gives_other_columns_is_refused(folder):
    manifest = pq.read_table(folder / "manifest.parquet").to_pylist()
    with pytest.raises(ValueError, match="allowed: finite numbers or NaN for red, words"):
        score_images(manifest, folder, Redness(), lambda images, prompts: [{"red": 1.0}] * len(images))
    with pytest.raises(ValueError, match="'redness' gave"):
        score_images(
            manifest, folder, Redness(), lambda images, prompts: [{"red": float("inf"), "words": 1.0}] * len(images)
        )


def test_every_score_keeps_what_the_number_is(folder):
    for row in pq.read_table(score_folder(folder, [Redness()])).to_pylist():
        kept = [row[name] for name in ("variant", "scorer_weights", "preprocessing", "scorer_dtype", "scale")]
        assert kept == ["redness", "none", "as drawn", "none", "raw"]


class Likeness(Scorer):
    kind: str = "likeness"
    columns: ClassVar[dict[str, str]] = {"red": "mean of the red channels of all references"}
    primary: ClassVar[str] = "red"
    needs_references: ClassVar[bool] = True

    def load(self, device="cpu"):
        def score(images, prompts, references):
            assert len(images) == len(prompts) == len(references)
            return [
                {"red": float(np.mean([np.asarray(image)[..., 0].mean() for image in several]))}
                for several in references
            ]

        return score


def test_a_scorer_that_needs_references_gets_each_images_own(folder):
    manifest = pq.read_table(folder / "manifest.parquet").to_pylist()
    for name, value in (("a.png", 10), ("b.png", 30)):
        Image.new("RGB", (2, 2), (value, 0, 0)).save(folder / name)
    rows = [row | {"references": names} for row, names in zip(manifest, (["a.png", "b.png"], ["b.png"]), strict=True)]
    scorer = Likeness()
    assert [row["score"] for row in score_images(rows, folder, scorer, scorer.load())] == [20.0, 30.0]
    with pytest.raises(ValueError, match=r"'likeness' compares with reference images; .*\.png has none"):
        score_images(manifest, folder, scorer, scorer.load())


@pytest.mark.parametrize("content", [b"no image", b"", None])
def test_an_image_that_cannot_be_read_is_named(folder, content):
    manifest = pq.read_table(folder / "manifest.parquet").to_pylist()
    file = folder / manifest[0]["file"]
    file.write_bytes(file.read_bytes()[:40] if content is None else content)
    with pytest.raises(ValueError, match=rf"image '.*{file.name}' cannot be read"):
        score_images(manifest, folder, Redness(), Redness().load())
