import json
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from dpo_core.data.batches import DataSection, Share, step_batches
from dpo_core.data.images import ImageLimits, decode, training_crop
from dpo_core.data.plan import Plan
from dpo_core.data.quarantine import read_quarantine
from dpo_core.data.schema import SCHEMA
from dpo_core.data.sources import AnySource, HPDv3, PickAPic, Table
from dpo_core.data.sources.filters import FilterSection, SplitSection
from dpo_core.data.sources.table import Winner
from ray_jobs import cli
from ray_jobs import import_pairs as verb
from ray_jobs.cluster import ClusterSection
from ray_jobs.config import load_config, save_config
from ray_jobs.import_pairs import ImportJob, import_pairs
from ray_jobs.shards.job import read_record, shard_files
from tests import source_sets
from tests.source_sets import JPEGS
from tests.tiny_data import make_pairs

ASSETS = Path(__file__).parents[1] / "assets"
PRESETS = sorted((Path(__file__).parents[2] / "tune_configs" / "data").glob("import-*.yaml"))
QUIET = Console(quiet=True)


def rows_of(folder: Path) -> list[dict]:
    return [row for file in shard_files(folder) for row in pq.read_table(file).to_pylist()]


@pytest.mark.parametrize("make", source_sets.ALL, ids=lambda make: make.__name__)
def test_every_source_gives_the_pairs_it_holds_and_they_can_be_trained_on(make, tmp_path: Path, capsys):
    (tmp_path / "in").mkdir()
    given = make(tmp_path / "in")
    job = ImportJob(source=given.source, out=str(tmp_path / "out"))  # type: ignore[arg-type]
    save_config(job, tmp_path / "job.yaml")
    command = ["import", "--config", str(tmp_path / "job.yaml")]
    assert cli.main([*command, "--dry-run"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert " ".join(given.source.expects.split()) in shown
    assert not (tmp_path / "out").exists()
    assert cli.main(command) == 0
    record = read_record(tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert [(row["caption"], row["jpg_0"], row["jpg_1"], row["label_0"]) for row in rows] == given.pairs
    assert {name: [row[name] for row in rows] for name in given.columns} == given.columns
    assert record.totals["in quarantine"] == 0
    assert record.totals["made"] == len(rows)
    assert pq.read_schema(shard_files(tmp_path / "out")[0]).names[: len(SCHEMA)] == SCHEMA.names

    columns = rows[0].keys()
    section = DataSection(
        paths=[str(tmp_path / "out")],
        resolution=16,
        min_side=16,
        captions="per_image" if "caption_0" in columns else "shared",
        quality="patch_quality_0" in columns,
        lanes=1,
    )
    plan = Plan.build(section)
    decided = [pair for pair in given.pairs if pair[3] != 0.5]
    assert plan.rows == len(decided)
    share = Share(seed=0, global_batch_size=plan.rows, worker_batch_size=plan.rows)
    (batch,) = next(step_batches(plan, section, share))
    chosen = {crop_of(pair[1] if pair[3] > 0.5 else pair[2]) for pair in decided}
    assert batch.pixels is not None
    assert {pixels.permute(1, 2, 0).numpy().tobytes() for pixels in batch.pixels[:, 0]} == chosen


def crop_of(data: bytes) -> bytes:
    return training_crop(decode(data, ImageLimits(16)), 16, x=0.5, y=0.5, flip=False).tobytes()


def test_every_source_has_a_set_in_these_tests_and_a_preset(tmp_path: Path):
    kinds = {section.model_fields["kind"].default for section in get_args(get_args(AnySource)[0])}
    made = set()
    for make in source_sets.ALL:
        (tmp_path / make.__name__).mkdir()
        made.add(make(tmp_path / make.__name__).source.model_dump()["kind"])
    assert made == kinds
    assert {load_config(ImportJob, preset, []).source.kind for preset in PRESETS} == kinds


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_preset_says_what_to_expect(preset: Path):
    assert sum(line.startswith("# ") for line in preset.read_text().splitlines()) >= 2


def test_pick_a_pic_is_taken_over_value_for_value(tmp_path: Path):
    import_pairs(ImportJob(source=PickAPic(paths=[str(ASSETS / "real_pairs.parquet")]), out=str(tmp_path)), QUIET)
    source = pq.read_table(ASSETS / "real_pairs.parquet")
    made = pq.read_table(shard_files(tmp_path)[0])
    assert made.schema.names == SCHEMA.names
    assert made.equals(source.select(SCHEMA.names).replace_schema_metadata(None))


def test_a_set_that_a_job_made_is_a_source_and_what_the_job_noted_beside_it_is_none(tmp_path: Path):
    import_pairs(ImportJob(source=PickAPic(paths=[str(ASSETS / "real_pairs.parquet")]), out=str(tmp_path / "a")), QUIET)
    for kind in (PickAPic, Table):
        again = ImportJob(source=kind(paths=[str(tmp_path / "a")]), out=str(tmp_path / kind.__name__))
        import_pairs(again, QUIET)
        assert [row["jpg_0"] for row in rows_of(tmp_path / kind.__name__)] == [
            row["jpg_0"] for row in rows_of(tmp_path / "a")
        ]


def test_row_groups_are_small_and_shards_as_large_as_asked(tmp_path: Path):
    pairs = make_pairs(tmp_path / "in", 130, group=130, shards=1)
    import_pairs(ImportJob(source=PickAPic(paths=[str(pairs)]), out=str(tmp_path / "out"), shard_pairs=100), QUIET)
    files = [pq.ParquetFile(file) for file in shard_files(tmp_path / "out")]
    groups = [[f.metadata.row_group(i).num_rows for i in range(f.num_row_groups)] for f in files]
    assert groups == [[50, 50], [30]]


def test_hostile_rows_are_in_quarantine_with_reason_and_place_and_nothing_is_lost(tmp_path: Path):
    source = PickAPic(paths=[str(ASSETS / "hostile.parquet")])
    record = import_pairs(ImportJob(source=source, out=str(tmp_path), max_quarantined_share=0.5), QUIET)
    cases = json.loads((ASSETS / "hostile.json").read_text())["hostile.parquet"]
    # Whether sides and ratios are usable is for the training job to say: its limits are its own.
    later = ("image_too_small", "image_aspect_extreme")
    bad = {c["row"]: c["reason"] for c in cases if c["expect"] == "quarantine" and c["reason"] not in later}
    found = read_quarantine(tmp_path / "quarantine.parquet")
    assert {(r.file, r.row): str(r.reason) for r in found} == {
        (str(ASSETS / "hostile.parquet"), row): reason for row, reason in bad.items()
    }
    assert record.totals == {"read": 40, "made": 40 - len(bad), "in quarantine": len(bad)}
    with pytest.raises(ValueError, match="more than max_quarantined_share"):
        import_pairs(ImportJob(source=source, out=str(tmp_path / "strict")), QUIET)


def test_without_decoding_only_what_a_header_shows_is_refused(tmp_path: Path):
    source = PickAPic(paths=[str(ASSETS / "hostile.parquet")])
    job = ImportJob(source=source, out=str(tmp_path), max_quarantined_share=0.5, check=False)
    import_pairs(job, QUIET)
    reasons = {str(record.reason) for record in read_quarantine(tmp_path / "quarantine.parquet")}
    assert "image_too_large" in reasons
    assert "image_truncated" not in reasons


def test_filters_count_what_they_leave_out_and_the_counts_add_up(tmp_path: Path):
    (tmp_path / "in").mkdir()
    source = source_sets.pickapic(tmp_path / "in").source
    filters = FilterSection(ties="drop", not_users=[1], min_side=10)
    console = Console(record=True, width=200)
    record = import_pairs(ImportJob(source=source, filters=filters, out=str(tmp_path / "out")), console)  # type: ignore[arg-type]
    assert record.totals == {"read": 4, "made": 1, "in quarantine": 0, "ties dropped": 1, "by other users": 2}
    assert "1 ties dropped" in console.export_text()
    assert json.loads((tmp_path / "out" / "job.json").read_text())["totals"]["by other users"] == 2


def test_min_side_looks_at_images_and_counts_them(tmp_path: Path):
    (tmp_path / "in").mkdir()
    source = source_sets.pickapic(tmp_path / "in").source
    filters = FilterSection(min_side=source_sets.SIDE + 1)
    record = import_pairs(ImportJob(source=source, filters=filters, out=str(tmp_path / "out")), QUIET)  # type: ignore[arg-type]
    assert record.totals["smaller than min_side"] == 4


def test_both_sides_of_a_split_are_the_whole_and_share_no_prompt(tmp_path: Path):
    pairs = make_pairs(tmp_path / "in", 40)
    prompts = {}
    for take in ("train", "held_out"):
        filters = FilterSection(split=SplitSection(held_out=0.4, take=take))
        import_pairs(ImportJob(source=PickAPic(paths=[str(pairs)]), filters=filters, out=str(tmp_path / take)), QUIET)
        prompts[take] = [row["caption"] for row in rows_of(tmp_path / take)]
    assert len(prompts["train"]) + len(prompts["held_out"]) == 40
    assert not set(prompts["train"]) & set(prompts["held_out"])


def test_a_stopped_import_goes_on_without_reading_the_source_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pairs = make_pairs(tmp_path / "in", 150, shards=1)
    job = ImportJob(source=PickAPic(paths=[str(pairs)]), out=str(tmp_path / "out"), shard_pairs=50)
    made = verb.ImportRecipe.load
    written: list[int] = []

    def load_and_die(recipe: verb.ImportRecipe):
        maker = made(recipe)

        def make(rows):
            written.append(len(rows))
            if len(written) == 3:
                raise KeyboardInterrupt
            return maker(rows)

        return make

    with monkeypatch.context() as patched:
        patched.setattr(verb.ImportRecipe, "load", load_and_die)
        with pytest.raises(KeyboardInterrupt):
            import_pairs(job, QUIET)
    parts = sorted(path.name for path in (tmp_path / "out").glob("pairs-*"))
    assert parts == ["pairs-00000.parquet.part", "pairs-00001.parquet.part"]
    monkeypatch.setattr(PickAPic, "told", lambda source: pytest.fail("the source is read again"))
    import_pairs(job, QUIET)
    assert [row["ranking_id"] for row in rows_of(tmp_path / "out")] == list(range(150))


def test_another_source_in_the_same_folder_is_refused_before_it_is_read(tmp_path: Path):
    pairs = make_pairs(tmp_path / "in", 4)
    job = ImportJob(source=PickAPic(paths=[str(pairs)]), out=str(tmp_path / "out"))
    import_pairs(job, QUIET)
    with pytest.raises(ValueError, match=r"filters.ties keep there, drop here"):
        import_pairs(job.model_copy(update={"filters": FilterSection(ties="drop")}), QUIET)
    other = job.model_copy(update={"source": HPDv3(paths=["nowhere.json"])})
    with pytest.raises(ValueError, match=r"source.kind pickapic there, hpdv3 here"):
        import_pairs(other, QUIET)


def test_dry_run_writes_nothing_and_reads_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pairs = make_pairs(tmp_path / "in", 7)
    monkeypatch.setattr(verb.ImageReader, "read", lambda reader, pointer: pytest.fail("an image is read"))
    job = ImportJob(source=PickAPic(paths=[str(pairs)]), out=str(tmp_path / "out"))
    assert dict(verb.plan_rows(job))["pairs"] == "7 of 7"
    assert not (tmp_path / "out").exists()


def test_nothing_left_is_said_with_the_reasons(tmp_path: Path):
    pairs = make_pairs(tmp_path / "in", 4)
    job = ImportJob(source=PickAPic(paths=[str(pairs)]), filters=FilterSection(users=[7]), out=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="no pair is left of 4: 4 by other users"):
        import_pairs(job, QUIET)


def test_nothing_left_but_quarantine_is_said_with_the_first_of_it(tmp_path: Path):
    pairs = make_pairs(tmp_path / "in", 4, shards=1) / "00000.parquet"
    job = ImportJob(source=Table(paths=[str(pairs)], label=Winner(column="caption")), out=str(tmp_path / "out"))
    message = (
        r"no pair is left of 4: 4 in quarantine \(record_malformed 4; the first is row 0 of .*caption is 'picture 0'"
    )
    with pytest.raises(ValueError, match=message):
        import_pairs(job, QUIET)


def test_a_row_group_of_many_rows_is_not_held_in_memory(tmp_path: Path):
    rows = [
        {"caption": "a", "jpg_0": JPEGS[i % 7], "jpg_1": JPEGS[7 + i % 7], "label_0": 1.0, "label_1": 0.0, "pad": b"x"}
        for i in range(200)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "one.parquet", row_group_size=200)
    import_pairs(ImportJob(source=PickAPic(paths=[str(tmp_path / "one.parquet")]), out=str(tmp_path / "out")), QUIET)
    held = [len(images) for _, images in verb._reader()._cells(str(tmp_path / "one.parquet"), "jpg_0")._held]
    assert len(held) <= 2
    assert sum(held) <= 32
    assert [row["jpg_1"] for row in rows_of(tmp_path / "out")] == [row["jpg_1"] for row in rows]


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_ray_makes_the_same_shards_as_one_process(tmp_path: Path, ray_cluster: None):
    (tmp_path / "in").mkdir()
    source = source_sets.hpdv2_ranked(tmp_path / "in").source
    for name, workers in (("here", 0), ("ray", 1)):
        cluster = ClusterSection(num_workers=workers)
        import_pairs(ImportJob(source=source, out=str(tmp_path / name), cluster=cluster), QUIET)  # type: ignore[arg-type]
    assert [Path(file).name for file in shard_files(tmp_path / "ray")] == ["pairs-00000.parquet"]
    assert pq.read_table(shard_files(tmp_path / "ray")[0]).equals(pq.read_table(shard_files(tmp_path / "here")[0]))
