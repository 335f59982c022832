import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo_core.data.quarantine import Reason, RowRejected
from dpo_core.data.sources import Pointer, fetch
from dpo_core.data.sources.fetch import ImageReader
from tests.source_sets import PNGS


def test_images_that_are_not_there_or_too_large_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetch, "LIMIT", 1000)
    (tmp_path / "large.png").write_bytes(bytes(1001))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(10_000_000))
    table = pa.table({"image": pa.array([None, bytes(1001)], pa.binary())})
    pq.write_table(table, tmp_path / "a.parquet")
    pointers = {
        Pointer(str(tmp_path / "none.png")): Reason.IMAGE_MISSING,
        Pointer(str(tmp_path)): Reason.IMAGE_MISSING,
        Pointer(str(tmp_path / "large.png")): Reason.IMAGE_TOO_LARGE,
        Pointer(str(tmp_path / "a.zip"), "none.png"): Reason.IMAGE_MISSING,
        Pointer(str(tmp_path / "a.zip"), "bomb.png"): Reason.IMAGE_TOO_LARGE,
        Pointer(str(tmp_path / "a.parquet"), "image", 0): Reason.IMAGE_NULL,
        Pointer(str(tmp_path / "a.parquet"), "image", 1): Reason.IMAGE_TOO_LARGE,
        None: Reason.IMAGE_NULL,
    }
    reasons = []
    for pointer in pointers:
        with pytest.raises(RowRejected) as caught:
            ImageReader().read(pointer)
        reasons.append(caught.value.reason)
    assert reasons == list(pointers.values())


def test_an_archive_that_is_none_stops_the_import(tmp_path: Path):
    for name in ("a.zip", "a.tar"):
        (tmp_path / name).write_bytes(b"no archive at all" * 100)
        with pytest.raises(ValueError, match="cannot be read as an archive"):
            ImageReader().read(Pointer(str(tmp_path / name), "a.png"))


def test_cells_are_read_in_any_order(tmp_path: Path):
    images = [bytes([i]) * 10 for i in range(100)]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet", row_group_size=40)
    order = np.random.default_rng(0).permutation(100).tolist()
    reader = ImageReader()
    assert [reader.read(Pointer(str(tmp_path / "a.parquet"), "image", row)) for row in order] == [
        images[i] for i in order
    ]


def test_members_of_a_tar_may_begin_with_a_dot(tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("./images/a.png")
        member.size = len(PNGS[0])
        archive.addfile(member, io.BytesIO(PNGS[0]))
    assert ImageReader().read(Pointer(str(tmp_path / "a.tar"), "images/a.png")) == PNGS[0]
