import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from eval.dreambench import KOSMOSG, check_folder, reference_files, score_dreambench, subject_prompts
from eval.scorers.base import Scorer
from eval.scorers.clip_i import ClipI
from eval.scorers.clip_t import ClipT
from tests.eval.scorers.test_clip_t import CONFIG

PHOTOS = Path(__file__).parents[1] / "assets" / "dreambench"
PROMPTS = {
    subject: [f"a {name} in the jungle", f"a {name} in the snow", f"a red {name}"]
    for subject, name in {"can": "can", "dog": "dog", "teapot": "teapot"}.items()
}
EYES = np.random.default_rng(0).normal(size=(3 * 64, 12))


def see(image: Image.Image) -> np.ndarray:
    """A made-up image encoder: 8 x 8 pixels through a fixed random matrix."""
    small = image.convert("RGB").resize((8, 8), Image.Resampling.BOX)
    return (np.asarray(small, dtype=np.float64).ravel() / 255) @ EYES


def unit(vectors) -> np.ndarray:
    array = np.asarray(vectors)
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


class Eyes(Scorer):
    kind: str = "eyes"
    columns: ClassVar[dict[str, str]] = {"dino": "mean cosine with the references"}
    primary: ClassVar[str] = "dino"
    needs_references: ClassVar[bool] = True

    def load(self, device="cpu"):
        def score(images, prompts, references):
            return [
                {"dino": float((unit([see(photo) for photo in photos]) @ unit(see(image))).mean())}
                for image, photos in zip(images, references, strict=True)
            ]

        return score


@pytest.fixture
def folder(tmp_path):
    """An image of noise for every prompt, of different sizes and modes."""
    rng = np.random.default_rng(1)
    for subject, texts in PROMPTS.items():
        (tmp_path / "out" / subject).mkdir(parents=True)
        for i, text in enumerate(texts):
            image = Image.fromarray(rng.integers(0, 255, (40 + 8 * i, 48, 3), dtype=np.uint8))
            image.convert("RGB" if i else "L").save(tmp_path / "out" / subject / f"{text}.png")
    return tmp_path / "out"


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(3)
    model = open_clip.CLIP(**CONFIG["model_cfg"])
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return f"local-dir:{folder}"


def published_formula(folder: Path, clip: str, photos: dict[str, list[Path]]) -> dict[str, float]:
    """The evaluator's arithmetic, written from its description: whole cosine matrices, a mean for each subject, a mean
    over subjects. Texts are the stems of the files."""
    loaded: Any = open_clip.create_model_and_transforms(clip)
    tokenizer, model, transform = open_clip.get_tokenizer(clip), loaded[0].eval(), loaded[2]

    def clip_images(files):
        with torch.no_grad():
            stacked = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
            return unit(model.encode_image(stacked).numpy())

    per_subject = []
    for place in sorted(folder.iterdir()):
        files = sorted(place.glob("*.png"))
        with torch.no_grad():
            texts = unit(model.encode_text(tokenizer([file.stem for file in files])).numpy())
        made, shown = clip_images(files), clip_images(photos[place.name])
        eyes = (
            unit([see(Image.open(file)) for file in files]) @ unit([see(Image.open(f)) for f in photos[place.name]]).T
        )
        per_subject.append(
            {"dino": eyes.mean(), "clip_i": (made @ shown.T).mean(), "clip_t": (made * texts).sum(-1).mean()}
        )
    return {name: float(np.mean([row[name] for row in per_subject])) for name in ("dino", "clip_i", "clip_t")}


@pytest.mark.parametrize("setting", ["original", "kosmosg"])
def test_averages_are_those_of_the_published_formula(folder, tiny_clip, setting):
    scorers = [Eyes(), ClipI(model=tiny_clip, weights=None), ClipT(model=tiny_clip, weights=None)]
    found = score_dreambench(folder, PHOTOS, setting, scorers, prompts=PROMPTS)
    photos = reference_files(PHOTOS, setting, PROMPTS)
    assert found.means == pytest.approx(published_formula(folder, tiny_clip, photos), abs=1e-6)
    expected = {"original": [3, 2, 1], "kosmosg": [1, 1, 1]}[setting]
    assert [row.references for row in found.subjects] == expected
    assert all(low <= found.means[name] <= high for name, (low, high) in found.intervals.items())


def test_subjects_count_once_however_many_images_they_have(folder):
    whole = score_dreambench(folder, PHOTOS, "original", [Eyes()], prompts=PROMPTS)
    fewer = {subject: texts[:1] if subject == "dog" else texts for subject, texts in PROMPTS.items()}
    for text in PROMPTS["dog"][1:]:
        (folder / "dog" / f"{text}.png").unlink()
    found = score_dreambench(folder, PHOTOS, "original", [Eyes()], prompts=fewer)
    others = [row.means["dino"] for row in whole.subjects if row.subject != "dog"]
    dog = next(row.means["dino"] for row in found.subjects if row.subject == "dog")
    assert found.means["dino"] == pytest.approx((sum(others) + dog) / 3)


def test_everything_that_is_wrong_with_a_folder_is_told_at_once(folder):
    (folder / "can" / "a can in the snow.png").unlink()
    (folder / "can" / "a can on the moon.png").write_bytes(b"x")
    (folder / "dog" / "a red dog.png").write_bytes(b"not an image")
    (folder / "cup").mkdir()
    for file in (folder / "teapot").iterdir():
        file.unlink()
    (folder / "teapot").rmdir()
    with pytest.raises(ValueError, match="no whole DreamBench") as error:
        check_folder(folder, PROMPTS)
    for told in (
        "1 of 3 subjects are missing: teapot",
        "unknown subjects: cup",
        "can: 2 of 3 images, first missing 'a can in the snow'",
        "can: 1 images of no known prompt, first 'a can on the moon'",
        "dog: a red dog.png is broken",
    ):
        assert told in str(error.value)


def test_a_truncated_image_is_broken_and_the_same_prompt_twice_is_too_many(folder):
    file = folder / "dog" / "a red dog.png"
    file.write_bytes(file.read_bytes()[:200])
    Image.new("RGB", (4, 4)).save(folder / "can" / "a red can.jpg")
    with pytest.raises(ValueError, match=r"can: 4 files for 3 prompts(?s:.*)dog: a red dog.png is broken"):
        check_folder(folder, PROMPTS)


def test_hidden_files_and_notes_are_no_images(folder):
    (folder / "dog" / "._a red dog.png").write_bytes(b"x")
    (folder / "dog" / "notes.txt").write_text("x")
    (folder / ".cache").mkdir()
    assert sorted(check_folder(folder, PROMPTS)["dog"]) == sorted(PROMPTS["dog"])


def test_a_broken_photo_is_named(folder, tmp_path):
    for subject in PROMPTS:
        (tmp_path / "photos" / subject).mkdir(parents=True)
        (tmp_path / "photos" / subject / "00.jpg").write_bytes(b"no photo")
    with pytest.raises(ValueError, match=r"image '.*can/00\.jpg' cannot be read"):
        score_dreambench(folder, tmp_path / "photos", "original", [Eyes()], prompts=PROMPTS)


def test_missing_photos_are_named():
    with pytest.raises(ValueError, match=r"for cat2$"):
        reference_files(PHOTOS, "original", ["can", "cat2"])
    with pytest.raises(ValueError, match=r"for rc_car/03$"):
        reference_files(PHOTOS, "kosmosg", ["teapot", "rc_car"])


def test_the_benchmark_has_thirty_subjects_with_a_photo_of_kosmosg_each():
    prompts = subject_prompts()
    assert len(prompts) == 30
    assert all(len(texts) == len(set(texts)) == 25 for texts in prompts.values())
    assert prompts.keys() == KOSMOSG.keys()
    assert prompts["dog"][0] == "a dog in the jungle"
