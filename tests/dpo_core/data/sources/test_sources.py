import json
import pickle
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from dpo_core.data.quarantine import Quarantined, Reason
from dpo_core.data.sources import (
    Arena,
    ChosenRejected,
    HPDv2,
    ImageFolder,
    LeftOut,
    PatchDPO,
    PickAPic,
    Pointer,
    Rankings,
    Record,
    Source,
    Table,
)
from dpo_core.data.sources.fetch import ImageReader
from dpo_core.data.sources.filters import FilterSection
from dpo_core.data.sources.index import Facts, taken_rows
from dpo_core.data.sources.ranked import ranked_pairs
from dpo_core.data.sources.table import AnyLabel, Chosen, Labels, Scores, Winner
from tests.local_http import serve
from tests.source_sets import JPEGS, PNGS, chosen_rejected, hpdv3, image_folder, patchdpo, pickapic


def lines(path: Path, *records: Any) -> str:
    path.write_text("\n".join(map(json.dumps, records)))
    return str(path)


def pairs_of(source: Source) -> list[tuple[str | None, str | None, float]]:
    """Names of both images and label 0 of what a source tells."""
    return [
        (_name(told.images[0]), _name(told.images[1]), told.values["label_0"])
        for told in source.told()
        if isinstance(told, Record)
    ]


def _name(pointer: Pointer | None) -> str | None:
    return Path(pointer.member or pointer.location).name if pointer else None


def rejected(source: Source) -> list[tuple[Reason, str]]:
    """Reasons and details of what cannot be used."""
    facts = Facts("")
    for _ in taken_rows(source, FilterSection(), facts):
        pass
    return [(record.reason, record.detail) for record in facts.quarantined]


def test_n_ranked_images_make_all_pairs_or_one_and_equal_ranks_tie():
    ranks = [2.0, 1.0, 2.0, 3.0]
    assert ranked_pairs(ranks, "all") == [
        (1, 0, False), (0, 2, True), (0, 3, False), (1, 2, False), (1, 3, False), (2, 3, False),
    ]  # fmt: skip
    assert ranked_pairs(ranks, "best_worst") == [(1, 3, False)]
    assert ranked_pairs([1.0, 1.0, 1.0], "best_worst") == [(0, 1, True)]
    assert ranked_pairs([1.0], "all") == ranked_pairs([1.0], "best_worst") == []


def test_rankings_may_be_lists_or_rows_and_low_or_high_ranks_may_be_best(tmp_path: Path):
    listed = lines(tmp_path / "lists.jsonl", {"prompt": "a", "image": ["0.png", "1.png", "2.png"], "rank": [3, 1, 2]})
    rows = [{"prompt": "a", "image": f"{i}.png", "rank": rank} for i, rank in enumerate([3, 1, 2])]
    single = lines(tmp_path / "rows.jsonl", *rows)
    expected = [("1.png", "0.png", 1.0), ("2.png", "0.png", 1.0), ("1.png", "2.png", 1.0)]
    assert pairs_of(Rankings(paths=[listed])) == pairs_of(Rankings(paths=[single])) == expected
    assert pairs_of(Rankings(paths=[single], best="highest", pairs="best_worst")) == [("0.png", "1.png", 1.0)]


def test_rankings_that_say_nothing_go_to_quarantine(tmp_path: Path):
    file = lines(
        tmp_path / "a.jsonl",
        {"prompt": "a", "image": ["0.png", "1.png"], "rank": [1]},
        {"prompt": "b", "image": ["0.png", "1.png"], "rank": [1, "x"]},
        {"prompt": "c", "image": ["0.png", "1.png"], "rank": [1, float("nan")]},
        {"prompt": "d", "image": "0.png", "rank": 1},
        {"prompt": "e", "image": "0.png", "rank": 1},
        {"prompt": "e", "image": "1.png", "rank": None},
    )
    found = rejected(Rankings(paths=[file]))
    assert [reason for reason, _ in found] == [Reason.RECORD_MALFORMED] * 5
    assert "only image of its prompt" in found[3][1]


def test_rows_of_images_keep_the_model_of_each(tmp_path: Path):
    rows = [{"prompt": "a", "image": f"{i}.png", "rank": i, "made_by": f"model {i}"} for i in (2, 1)]
    (told,) = Rankings(paths=[lines(tmp_path / "a.jsonl", *rows)], model="made_by").told()
    assert isinstance(told, Record)
    assert (told.values["model_0"], told.values["model_1"]) == ("model 1", "model 2")


@pytest.mark.parametrize(
    ("label", "record", "expected"),
    [
        (Labels(), {"label_0": 1, "label_1": 0}, 1.0),
        (Labels(), {"label_0": "0.5", "label_1": "0.5"}, 0.5),
        (Labels(), {"label_0": None, "label_1": 0}, Reason.LABEL_MISSING),
        (Labels(), {"label_0": 2, "label_1": -1}, Reason.LABEL_OUT_OF_RANGE),
        (Labels(), {"label_0": "x", "label_1": 0}, Reason.RECORD_MALFORMED),
        (Winner(), {"winner": 0}, 1.0),
        (Winner(), {"winner": 1.0}, 0.0),
        (Winner(), {"winner": "TIE "}, 0.5),
        (Winner(), {"winner": None}, Reason.LABEL_MISSING),
        (Winner(), {"winner": "left"}, Reason.RECORD_MALFORMED),
        (Winner(image_0="true", image_1="false"), {"winner": False}, 0.0),
        (Scores(), {"score_0": 0.1, "score_1": "0.2"}, 0.0),
        (Scores(), {"score_0": -1, "score_1": -1}, 0.5),
        (Scores(), {"score_0": float("nan"), "score_1": 1}, Reason.LABEL_NAN),
        (Scores(), {"score_0": None, "score_1": 1}, Reason.LABEL_MISSING),
        (Chosen(), {}, 1.0),
        (Chosen(confidence="sure", min_confidence=0.7), {"sure": 0.8}, 1.0),
        (Chosen(confidence="sure", min_confidence=0.7), {"sure": 0.6}, "confidence too low"),
        (Chosen(confidence="sure", min_confidence=0.7), {"sure": None}, "confidence too low"),
    ],
)
def test_labels_come_as_two_columns_a_winner_two_scores_or_none(
    tmp_path: Path, label: AnyLabel, record: dict, expected
):
    file = lines(tmp_path / "a.jsonl", {"caption": "a", "jpg_0": "0.png", "jpg_1": "1.png"} | record)
    source = Table(paths=[file], label=label)
    if isinstance(expected, Reason):
        assert [reason for reason, _ in rejected(source)] == [expected]
    else:
        (told,) = source.told()
        assert (told.why if isinstance(told, LeftOut) else told.values["label_0"]) == expected  # type: ignore[union-attr]


def test_votes_of_nobody_and_wrong_votes_are_told_apart(tmp_path: Path):
    vote = {"prompt": "a", "image_left": "0.png", "image_right": "1.png", "voter": "ann", "created_at": "soon"}
    votes = [vote | {"vote": "both"}, vote | {"vote": "left"}, vote | {"vote": "left", "created_at": None}]
    source = Arena(paths=[lines(tmp_path / "votes.jsonl", *votes)])
    assert [detail.split(":")[0] for _, detail in rejected(source)] == [
        "vote is 'both', expected are left, right, tie",
        "created_at",
    ]
    facts = Facts("")
    (row,) = taken_rows(source, FilterSection(users=["ann"]), facts)
    assert isinstance(row["user_id"], int)


def test_pairs_without_a_partner_go_to_quarantine(tmp_path: Path):
    source = chosen_rejected(tmp_path).source
    (tmp_path / "rejected" / "a.png").unlink()
    (tmp_path / "rejected" / "c.png").write_bytes(PNGS[0])
    assert pairs_of(source) == [("b.jpg", "b.png", 1.0)]
    assert rejected(source) == [
        (Reason.IMAGE_MISSING, "there is no rejected image a.*"),
        (Reason.IMAGE_MISSING, "there is no chosen image c.*"),
    ]
    (tmp_path / "chosen" / "more" / "b.webp").write_bytes(PNGS[0])
    with pytest.raises(ValueError, match="has the name of another image"):
        list(source.told())


@pytest.mark.parametrize(
    ("chosen", "rejected_folder"), [("", "rejected"), ("chosen", "chosen/more"), ("chosen", "chosen/")]
)
def test_folders_inside_one_another_are_refused(tmp_path: Path, chosen: str, rejected_folder: str):
    chosen_rejected(tmp_path)
    source = ChosenRejected(chosen=f"{tmp_path}/{chosen}", rejected=f"{tmp_path}/{rejected_folder}")
    with pytest.raises(ValueError, match=r"lie inside one another|has the name of another image"):
        list(source.told())


def test_two_metadata_files_in_one_folder_are_refused(tmp_path: Path):
    source = image_folder(tmp_path).source
    (tmp_path / "metadata.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=r"holds metadata\.csv and metadata\.jsonl, which may tell of the same pairs"):
        source.files()


def test_each_image_of_two_folders_may_have_a_caption_of_its_own(tmp_path: Path):
    chosen_rejected(tmp_path)
    (tmp_path / "rejected" / "a.txt").write_text("of the rejected")
    source = ChosenRejected(chosen=str(tmp_path / "chosen"), rejected=str(tmp_path / "rejected"), captions="per_image")
    assert [reason for reason, _ in rejected(source)] == [Reason.CAPTION_NULL]
    (row,) = taken_rows(source, FilterSection(), Facts(""))
    assert (row["caption_0"], row["caption_1"]) == (["caption 0"], ["of the rejected"])


@pytest.mark.parametrize("sharing", ["memory", "http"])
def test_folders_of_images_are_found_on_a_server(tmp_path: Path, sharing: str):
    chosen_rejected(tmp_path)
    with serve(tmp_path) as web:
        root = web.url
        if sharing == "memory":
            root = f"memory://{tmp_path.name}"
            fsspec.filesystem("memory").put(f"{tmp_path}/", f"/{tmp_path.name}/", recursive=True)
        source = ChosenRejected(chosen=f"{root}/chosen/", rejected=f"{root}/rejected/")
        told = [record for record in source.told() if isinstance(record, Record)]
        assert [record.values["caption"] for record in told] == [["caption 0"], ["caption 1"]]
        assert [ImageReader().read(record.images[0]) for record in told] == [JPEGS[0], JPEGS[2]]


def test_a_set_on_a_web_server_is_read_where_it_lies(tmp_path: Path):
    hpdv3(tmp_path)
    (tmp_path / "parquet").mkdir()
    pickapic(tmp_path / "parquet")
    with serve(tmp_path) as web:
        reader = ImageReader()
        for source, images in (
            (Table(paths=[f"{web.url}/train.json"], image_0="path1", image_1="path2", caption="prompt", label=Chosen()),
             PNGS[:6]),
            (PickAPic(paths=[f"{web.url}/parquet/"]), JPEGS[:8]),
        ):  # fmt: skip
            told = [record for record in source.told() if isinstance(record, Record)]
            assert [reader.read(pointer) for record in told for pointer in record.images] == images


def test_patch_quality_that_is_missing_or_flat_goes_to_quarantine(tmp_path: Path):
    source = patchdpo(tmp_path).source
    grid = np.ones((2, 2), np.float32)
    maps = {"0": {0: {"target_map": grid, "gene_map": np.ones(4)}}, 1: [{"target_map": grid}]}
    (tmp_path / "patch_quality.pkl").write_bytes(pickle.dumps(maps))
    (tmp_path / "sample1" / "a cat_gen_0.png").write_bytes(PNGS[0])
    (tmp_path / "sample1" / "x.png").write_bytes(PNGS[0])
    assert [reason for reason, _ in rejected(source)] == [
        Reason.QUALITY_MALFORMED, Reason.IMAGE_MISSING, Reason.QUALITY_MISSING, Reason.RECORD_MALFORMED,
    ]  # fmt: skip


def test_a_pickle_that_would_run_something_stops_the_import(tmp_path: Path):
    source = patchdpo(tmp_path).source
    (tmp_path / "patch_quality.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match=r"patch_quality\.pkl is no pickle of .* asks for os\.system"):
        list(source.told())
    (tmp_path / "patch_quality.pkl").unlink()
    with pytest.raises(ValueError, match=r"patch_quality\.pkl"):
        list(source.told())


def test_samples_of_patchdpo_are_counted_by_their_number(tmp_path: Path):
    for i in (2, 10):
        (tmp_path / f"sample{i}").mkdir()
        (tmp_path / f"sample{i}" / "dog_entity_0.png").write_bytes(PNGS[i])
        (tmp_path / f"sample{i}" / "dog_gen_1.png").write_bytes(PNGS[i + 1])
    entry = [None, {"target_map": np.full((1, 1), 1.0), "gene_map": np.full((1, 1), 0.5)}]
    (tmp_path / "patch_quality.pkl").write_bytes(pickle.dumps({2: entry, 10: entry}))
    told = [record for record in PatchDPO(folder=str(tmp_path)).told() if isinstance(record, Record)]
    assert [record.row for record in told] == [2, 10]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (PickAPic(), "source.paths is empty"),
        (PickAPic(paths=["nowhere/*.parquet"]), "leads to no file"),
        (ImageFolder(), "source.folder is empty"),
        (ImageFolder(folder="EMPTY"), r"holds none of metadata\.csv"),
        (ChosenRejected(chosen="EMPTY"), "source.chosen: .* holds no image"),
        (PatchDPO(folder="EMPTY"), r"holds no \.png"),
    ],
)
def test_a_source_that_is_not_there_is_told(source: Source, message: str, tmp_path: Path):
    fields = {name: str(tmp_path) for name, value in source.model_dump().items() if value == "EMPTY"}
    source = source.model_copy(update=fields)
    with pytest.raises(ValueError, match=message):
        list(source.told())
    with pytest.raises(ValueError, match=message):
        source.files()


def test_a_file_that_is_reached_twice_is_refused(tmp_path: Path):
    pickapic(tmp_path)
    with pytest.raises(ValueError, match="twice"):
        PickAPic(paths=[str(tmp_path), str(tmp_path / "*.parquet")]).files()


def test_hpdv2_tells_both_of_its_forms_by_the_first_row_and_quarantines_what_does_not_fit(tmp_path: Path):
    records = [
        {"prompt": "a", "file_path": ["0.jpg", "1.jpg"], "human_preference": [1, 0]},
        {"prompt": "a", "file_path": ["0.jpg"], "human_preference": [1]},
        {"prompt": "a", "file_path": "0.jpg", "human_preference": [1, 0]},
        {"prompt": "a", "file_path": ["0.jpg", "1.jpg"], "human_preference": [1, 1]},
        {"prompt": "a", "image_path": ["0.jpg", "1.jpg"], "rank": [1, 1]},
    ]
    (tmp_path / "train.json").write_text(json.dumps(records))
    source = HPDv2(paths=[str(tmp_path / "train.json")])
    assert pairs_of(source) == [("0.jpg", "1.jpg", 1.0), ("0.jpg", "1.jpg", 0.5)]
    assert [record.row for record in source.told() if isinstance(record, Quarantined)] == [1, 2, 4]


def test_ids_are_the_same_wherever_a_set_lies(tmp_path: Path):
    ids = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        source = hpdv3(tmp_path / name).source
        ids.append([row["ranking_id"] for row in taken_rows(source, FilterSection(), Facts(""))])
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 2
