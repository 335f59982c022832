from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo_core.data import locations
from tests.local_http import Served, serve


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Served]:
    with serve(tmp_path) as served:
        yield served


def fill(folder: Path) -> None:
    for name in ("b.parquet", "a.parquet", "notes.txt", "more/c.parquet", ".hidden.parquet"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(name.encode())


def test_a_local_file_glob_or_folder_leads_to_its_files(tmp_path: Path):
    fill(tmp_path)
    assert locations.find(str(tmp_path / "notes.txt"), (".parquet",)) == [str(tmp_path / "notes.txt")]
    assert locations.find(str(tmp_path / "*.parquet"), ()) == [
        str(tmp_path / name) for name in ("a.parquet", "b.parquet")
    ]
    found = locations.find(str(tmp_path), (".parquet",))
    assert found == [str(tmp_path / name) for name in ("a.parquet", "b.parquet", "more/c.parquet")]
    assert locations.find(str(tmp_path / "nothing"), (".parquet",)) == []


def test_a_memory_file_system_is_searched_and_read_like_a_folder(tmp_path: Path):
    system = fsspec.filesystem("memory")
    for name in ("b.parquet", "a.parquet", "notes.txt", "more/c.parquet", ".hidden.parquet"):
        system.pipe(f"/set/{name}", name.encode())
    urls = [f"memory:///set/{name}" for name in ("a.parquet", "b.parquet", "more/c.parquet")]
    assert locations.find("memory://set", (".parquet",)) == urls
    assert locations.find("memory://set/*.parquet", (".parquet",)) == urls[:2]
    assert locations.find("memory://set/a.parquet", (".parquet",)) == urls[:1]
    assert locations.find("memory://nothing", (".parquet",)) == []
    assert locations.read_bytes(urls[2], 4) == b"more"
    assert locations.size(urls[0]) == 9
    with pytest.raises(FileNotFoundError):
        locations.read_bytes("memory://set/nothing", 4)


def test_a_web_server_is_searched_by_its_listings_and_read(tmp_path: Path, web: Served):
    fill(tmp_path)
    assert locations.find(f"{web.url}/a.parquet", (".parquet",)) == [f"{web.url}/a.parquet"]
    assert locations.find(web.url + "/*.parquet", (".parquet",)) == [f"{web.url}/{name}.parquet" for name in "ab"]
    found = locations.find(web.url + "/", (".parquet",))
    assert found == [f"{web.url}/{name}" for name in ("a.parquet", "b.parquet", "more/c.parquet")]
    assert locations.read_bytes(f"{web.url}/more/c.parquet", 100) == b"more/c.parquet"
    with pytest.raises(FileNotFoundError):
        locations.read_bytes(f"{web.url}/missing.png", 4)


def test_of_a_remote_parquet_file_only_the_columns_asked_for_cross_the_wire(tmp_path: Path, web: Served):
    images = [np.random.default_rng(i).bytes(50_000) for i in range(40)]
    table = pa.table({"caption": [f"caption {i}" for i in range(40)], "jpg_0": images, "label_0": [1.0] * 40})
    pq.write_table(table, tmp_path / "set.parquet", row_group_size=10)
    with locations.open_parquet(f"{web.url}/set.parquet") as parquet:
        read = [text for batch in parquet.iter_batches(columns=["caption"]) for text in batch.column(0).to_pylist()]
    assert read == [f"caption {i}" for i in range(40)]
    assert web.bytes < 100_000 < sum(map(len, images))


def test_a_fault_that_passes_is_tried_again_and_one_that_stays_is_told(
    tmp_path: Path, web: Served, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(locations.time, "sleep", lambda seconds: None)
    (tmp_path / "a.png").write_bytes(b"image")
    web.failures = 1
    assert locations.read_bytes(f"{web.url}/a.png", 10) == b"image"
    web.failures = 100
    with pytest.raises(ValueError, match=r"a\.png cannot be read: .*503"):
        locations.read_bytes(f"{web.url}/a.png", 10)
    assert 100 - web.failures <= 2 * locations.ATTEMPTS


def test_a_protocol_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch):
    def absent(location: str):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(locations, "url_to_fs", absent)
    for url, extra in (("gs://bucket/a.parquet", "gcs"), ("hf://datasets/a/b", "hf")):
        with pytest.raises(ValueError, match=rf"pip install 'palate\[{extra}\]'"):
            locations.find(url, (".parquet",))


def test_an_unknown_protocol_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match=r"nfs2:// cannot be read .* s3://, gs://, hf://, https://"):
        locations.find("nfs2://a/b.parquet", (".parquet",))


@pytest.mark.parametrize(
    "name",
    ["../secret", "a/../../secret", "/etc/passwd", "..", "https://somewhere/a.png", "file:///etc/passwd", "..\\secret",
     "C:\\secret", "a\0b", "."],
)  # fmt: skip
def test_a_name_that_leads_out_of_the_folder_is_refused(name: str):
    for folder in ("/data/set", "s3://bucket/set"):
        with pytest.raises(ValueError, match="leads out of the folder"):
            locations.inside(folder, name)


def test_a_name_inside_the_folder_is_found_there():
    assert locations.inside("/data/set", "./images//a.png") == "/data/set/images/a.png"
    assert locations.inside("https://host/set/", "b/../a.png") == "https://host/set/a.png"


def test_a_web_server_that_cannot_be_reached_is_told_from_a_file_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(locations.time, "sleep", lambda seconds: None)
    with serve(tmp_path) as closed, pytest.raises(FileNotFoundError):
        locations.size(f"{closed.url}/a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read: ClientConnectorError: Cannot connect"):
        locations.size(f"{closed.url}/a.parquet")
