"""hf:// against a hub on this machine."""

from pathlib import Path

import pytest
from fsspec.config import conf
from huggingface_hub import constants

from dpo_core.data import locations
from dpo_core.data.batches import DataSection
from dpo_core.data.plan import Plan
from tests.local_hub import serve_hub
from tests.tiny_data import make_pairs


def test_a_data_set_of_a_hub_is_searched_and_planned_like_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pairs = make_pairs(tmp_path / "owner" / "name" / "data", 24, side=256, shards=2, group=4)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serve_hub(tmp_path) as hub:
        monkeypatch.setitem(conf, "hf", {"endpoint": hub.url, "token": False})
        for place in ("owner/name", "owner/name/data", "owner/name@main/data/*.parquet"):
            found = locations.find(f"hf://datasets/{place}", (".parquet",))
            assert [locations.name_of(file) for file in found] == ["00000.parquet", "00001.parquet"]
        assert locations.find("hf://datasets/owner/nothing", (".parquet",)) == []
        hub.bytes = 0
        far = Plan.build(DataSection(paths=["hf://datasets/owner/name/data"]))
        assert far.fingerprint == Plan.build(DataSection(paths=[str(pairs)])).fingerprint
        assert hub.bytes < 0.25 * sum(file.stat().st_size for file in pairs.iterdir())


def test_a_hub_that_cannot_be_reached_is_told_and_not_taken_for_an_empty_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(locations.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for place in ("owner/name@refs%2Fconvert%2Fparquet/train/*.parquet", "owner/name/data"):
        with pytest.raises(ValueError, match=f"datasets/{place.split('@')[0]}.* cannot be read: .*offline"):
            locations.find(f"hf://datasets/{place}", (".parquet",))
