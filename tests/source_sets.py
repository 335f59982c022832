"""A small set in the layout of every source, with real images, and what must come of it."""

import csv
import io
import json
import pickle
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dpo_core.data import sources as s
from dpo_core.data.sources.table import Scores, Winner

SIDE = 24


def picture(seed: int, form: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE + seed % 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=form)
    return buffer.getvalue()


JPEGS = [picture(seed) for seed in range(24)]
PNGS = [picture(seed, "PNG") for seed in range(24)]


@dataclass
class SourceSet:
    """A source, and its pairs in order: (caption, image 0, image 1, label 0)."""

    source: s.Source
    pairs: list[tuple[str, bytes, bytes, float]]
    columns: dict[str, list[Any]] = field(default_factory=dict)
    """Further columns that the imported set must hold."""


def pickapic(folder: Path) -> SourceSet:
    rows = [
        {
            "caption": f"prompt {i}", "jpg_0": JPEGS[2 * i], "jpg_1": JPEGS[2 * i + 1], "label_0": label,
            "label_1": 1 - label, "ranking_id": 100 + i, "user_id": i % 2, "model_0": "dreamlike", "model_1": "SDXL",
            "created_at": 1_700_000_000_123_456_789, "image_0_uid": f"uid {i}", "unknown": "ignored",
        }
        for i, label in enumerate([1.0, 0.0, 0.5, 1.0])
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows)
    table = table.set_column(9, "created_at", table.column("created_at").cast(pa.timestamp("ns")))
    pq.write_table(table, folder / "train.parquet", row_group_size=3)
    pairs = [(r["caption"], r["jpg_0"], r["jpg_1"], r["label_0"]) for r in rows]
    columns = {"ranking_id": [100, 101, 102, 103], "user_id": [0, 1, 0, 1], "model_0": ["dreamlike"] * 4}
    columns |= {"image_0_uid": [f"uid {i}" for i in range(4)]}
    return SourceSet(s.PickAPic(paths=[str(folder)]), pairs, columns)


def pick_double_caption(folder: Path) -> SourceSet:
    rows = [
        {
            "caption": f"prompt {i}", "jpg_0": JPEGS[2 * i], "jpg_1": JPEGS[2 * i + 1], "label_0": label,
            "label_1": 1 - label, "llava_w": f"chosen {i}", "llava_l": f"rejected {i}",
        }
        for i, label in enumerate([1, 0])
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "default.parquet")
    source = s.PickDoubleCaption(paths=[str(folder)], caption_0="llava_w", caption_1="llava_l", follows="labels")
    pairs = [(r["caption"], r["jpg_0"], r["jpg_1"], float(r["label_0"])) for r in rows]
    return SourceSet(source, pairs, {"caption_0": ["chosen 0", "rejected 1"], "caption_1": ["rejected 0", "chosen 1"]})


def open_image_preferences(folder: Path) -> SourceSet:
    rows = [
        {"prompt": f"p{i}", "chosen": {"bytes": PNGS[2 * i], "path": None}, "rejected": {"bytes": PNGS[2 * i + 1]}}
        for i in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    pairs = [(f"p{i}", PNGS[2 * i], PNGS[2 * i + 1], 1.0) for i in range(3)]
    return SourceSet(s.OpenImagePreferences(paths=[str(folder)]), pairs)


def hpdv2(folder: Path) -> SourceSet:
    """train.json with images in a zip."""
    records = [
        {"prompt": "a", "file_path": ["0.jpg", "1.jpg"], "human_preference": [0, 1]},
        {"prompt": "b", "file_path": ["2.jpg", "3.jpg"], "human_preference": [1, 0]},
    ]
    (folder / "train.json").write_text(json.dumps(records, indent=1))
    with zipfile.ZipFile(folder / "train.zip", "w") as archive:
        for i in range(4):
            archive.writestr(f"{i}.jpg", JPEGS[i])
    source = s.HPDv2(paths=[str(folder / "train.json")], images=str(folder / "train.zip"))
    return SourceSet(source, [("a", JPEGS[1], JPEGS[0], 1.0), ("b", JPEGS[2], JPEGS[3], 1.0)])


def hpdv2_ranked(folder: Path) -> SourceSet:
    """test.json with images in a tar."""
    records = [{"prompt": "a", "image_path": ["0.jpg", "1.jpg", "2.jpg"], "rank": [2, 1, 2], "raw_annotations": []}]
    (folder / "test.json").write_text(json.dumps(records))
    with tarfile.open(folder / "test.tar", "w") as archive:
        for i in range(3):
            member = tarfile.TarInfo(f"./{i}.jpg")
            member.size = len(JPEGS[i])
            archive.addfile(member, io.BytesIO(JPEGS[i]))
    source = s.HPDv2(paths=[str(folder / "test.json")], images=str(folder / "test.tar"))
    pairs = [("a", JPEGS[1], JPEGS[0], 1.0), ("a", JPEGS[0], JPEGS[2], 0.5), ("a", JPEGS[1], JPEGS[2], 1.0)]
    return SourceSet(source, pairs)


def hpdv3(folder: Path) -> SourceSet:
    (folder / "images").mkdir()
    for i in range(6):
        (folder / "images" / f"{i}.png").write_bytes(PNGS[i])
    records = [
        {"prompt": f"p{i}", "path1": f"images/{2 * i}.png", "path2": f"images/{2 * i + 1}.png", "confidence": i / 2,
         "model1": "flux", "model2": "sdxl"}
        for i in range(3)
    ]  # fmt: skip
    (folder / "train.json").write_text(json.dumps(records))
    source = s.HPDv3(paths=[str(folder / "train.json")], confidence="confidence", min_confidence=0.5)
    pairs = [(f"p{i}", PNGS[2 * i], PNGS[2 * i + 1], 1.0) for i in (1, 2)]
    return SourceSet(source, pairs, {"model_0": ["flux"] * 2, "model_1": ["sdxl"] * 2})


def rankings(folder: Path) -> SourceSet:
    """A row per image, the rows of a prompt apart."""
    given = [("a", 2, 0), ("b", 1, 1), ("a", 1, 2), ("b", 1, 3), ("a", 3, 4)]
    rows = [
        {"prompt_id": f"id {p}", "prompt": p, "rank": rank, "image": {"bytes": JPEGS[i], "path": f"{i}.jpg"}}
        for p, rank, i in given
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    pairs = [("a", JPEGS[2], JPEGS[4], 1.0), ("b", JPEGS[1], JPEGS[3], 0.5)]
    return SourceSet(s.Rankings(paths=[str(folder)], pairs="best_worst"), pairs)


def image_folder(folder: Path) -> SourceSet:
    for i in range(4):
        (folder / f"{i}.jpg").write_bytes(JPEGS[i])
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["first_file_name", "second_file_name", "text", "better"])
        writer.writerow(["0.jpg", "1.jpg", "a, b", "second"])
        writer.writerow(["2.jpg", "3.jpg", 'a "c"', "Tie"])
    label = Winner(column="better", image_0="first", image_1="second")
    source = s.ImageFolder(folder=str(folder), image_0="first_file_name", image_1="second_file_name", label=label)
    return SourceSet(source, [("a, b", JPEGS[0], JPEGS[1], 0.0), ('a "c"', JPEGS[2], JPEGS[3], 0.5)])


def chosen_rejected(folder: Path) -> SourceSet:
    for side in ("chosen", "rejected"):
        (folder / side / "more").mkdir(parents=True)
    for i, name in enumerate(("a", "more/b")):
        (folder / "chosen" / f"{name}.jpg").write_bytes(JPEGS[2 * i])
        (folder / "rejected" / f"{name}.png").write_bytes(PNGS[2 * i + 1])
        (folder / "chosen" / f"{name}.txt").write_text(f"caption {i}\n")
    source = s.ChosenRejected(chosen=str(folder / "chosen"), rejected=str(folder / "rejected"))
    return SourceSet(source, [(f"caption {i}", JPEGS[2 * i], PNGS[2 * i + 1], 1.0) for i in range(2)])


def patchdpo(folder: Path) -> SourceSet:
    maps = [
        [{"target_map": np.full((2, 2), 0.25 * i, np.float32), "gene_map": np.full((2, 2), 0.5, np.float64)}]
        for i in range(2)
    ]
    for i in range(2):
        sample = folder / f"sample{i}"
        sample.mkdir()
        (sample / f"a dog_{i}_entity_0.png").write_bytes(PNGS[2 * i])
        (sample / f"a dog_{i}_gen_0.png").write_bytes(PNGS[2 * i + 1])
    (folder / "patch_quality.pkl").write_bytes(pickle.dumps(maps))
    pairs = [(f"a dog_{i}", PNGS[2 * i], PNGS[2 * i + 1], 1.0) for i in range(2)]
    columns = {"patch_quality_0": [[[0.0] * 2] * 2, [[0.25] * 2] * 2], "patch_quality_1": [[[0.5] * 2] * 2] * 2}
    return SourceSet(s.PatchDPO(folder=str(folder)), pairs, columns)


def arena(folder: Path) -> SourceSet:
    votes = []
    for i, vote in enumerate(["left", "right", "tie"]):
        for side in (0, 1):
            (folder / f"{2 * i + side}.png").write_bytes(PNGS[2 * i + side])
        votes.append({"prompt": f"p{i}", "image_left": f"{2 * i}.png", "image_right": f"{2 * i + 1}.png", "vote": vote,
                      "voter": "somebody", "model_left": "base", "model_right": "tuned",
                      "created_at": "2026-11-20T10:00:00Z"})  # fmt: skip
    (folder / "votes.jsonl").write_text("\n".join(map(json.dumps, votes)) + "\n")
    labels = [1.0, 0.0, 0.5]
    pairs = [(f"p{i}", PNGS[2 * i], PNGS[2 * i + 1], labels[i]) for i in range(3)]
    return SourceSet(s.Arena(paths=[str(folder / "votes.jsonl")]), pairs, {"model_1": ["tuned"] * 3})


def table(folder: Path) -> SourceSet:
    rows = [{"a": JPEGS[0], "b": JPEGS[1], "texts": ["one", "two"], "u": 0.25, "v": 0.5, "who": "x"}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "mine.parquet")
    source = s.Table(
        paths=[str(folder / "*.parquet")], image_0="a", image_1="b", caption="texts", user="who",
        label=Scores(score_0="u", score_1="v"),
    )  # fmt: skip
    return SourceSet(source, [(["one", "two"], JPEGS[0], JPEGS[1], 0.0)])  # type: ignore[list-item]


ALL = [
    pickapic, pick_double_caption, open_image_preferences, hpdv2, hpdv2_ranked, hpdv3, rankings, image_folder,
    chosen_rejected, patchdpo, arena, table,
]  # fmt: skip
