import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpo_core.data.quarantine import Quarantined, Reason
from dpo_core.data.sources import tables
from dpo_core.data.sources.base import Pointer
from dpo_core.data.sources.tables import Columns, TableRow, read_table
from tests.local_http import Served, serve

PROMPTS = Columns(required=("prompt",))


def prompts(file: Path | str, columns: Columns = PROMPTS) -> list:
    rows = read_table(str(file), columns)
    return [row.values["prompt"] if isinstance(row, TableRow) else row.detail for row in rows]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Served]:
    with serve(tmp_path) as served:
        yield served


def test_columns_that_are_not_used_are_never_read(tmp_path: Path, web: Served):
    rows = 60
    images = [np.random.default_rng(i).bytes(20_000) for i in range(rows)]
    unused = [np.random.default_rng(1000 + i).bytes(20_000) for i in range(rows)]
    columns = {"prompt": [f"p{i}" for i in range(rows)], "image": images, "unused": unused}
    pq.write_table(pa.table(columns), tmp_path / "set.parquet", row_group_size=20)
    read = list(read_table(f"{web.url}/set.parquet", Columns(("prompt",), images=("image",))))
    assert [row.values for row in read if isinstance(row, TableRow)] == [{"prompt": f"p{i}"} for i in range(rows)]
    assert isinstance(read[45], TableRow)
    assert read[45].images == {"image": Pointer(f"{web.url}/set.parquet", "image", 45)}
    assert web.bytes < 100_000


def test_parquet_without_a_column_is_refused_and_its_columns_are_named(tmp_path: Path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"the column\(s\) prompt are missing; the file has text"):
        prompts(tmp_path / "a.parquet")


def test_an_image_column_of_numbers_is_refused(tmp_path: Path):
    pq.write_table(pa.table({"prompt": ["a"], "image": [1.5]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="column image has type double"):
        prompts(tmp_path / "a.parquet", Columns(("prompt",), images=("image",)))


def test_text_that_is_no_utf8_is_read_with_replacement_characters(tmp_path: Path):
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xffa")]
    )
    pq.write_table(pa.table({"prompt": broken}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "\xffa"}\n')
    (tmp_path / "a.csv").write_bytes(b"prompt\n\xffa\n")
    assert [prompts(tmp_path / f"a.{kind}") for kind in ("parquet", "jsonl", "csv")] == [["\ufffda"]] * 3


@pytest.mark.parametrize("chunk", [1, 7, 1 << 16])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_list_is_read_item_by_item_whatever_the_chunks(
    tmp_path: Path, monkeypatch, chunk: int, indent: int | None
):
    monkeypatch.setattr(tables, "CHUNK", chunk)
    texts = ["a", 'quo"te]', "ünï\u2028", "{[", "x" * 50]
    (tmp_path / "a.json").write_text(
        json.dumps([{"prompt": t, "n": [1, {"m": 2}]} for t in texts], indent=indent, ensure_ascii=False)
    )
    assert prompts(tmp_path / "a.json") == texts
    (tmp_path / "empty.json").write_text(" [ ] ")
    assert prompts(tmp_path / "empty.json") == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5)))
def test_json_lists_of_anything_agree_with_the_parser_that_reads_them_whole(tmp_path: Path, monkeypatch, values: list):
    monkeypatch.setattr(tables, "CHUNK", 3)
    (tmp_path / "a.json").write_text(json.dumps(values))
    with open(tmp_path / "a.json", "rb") as stream:
        assert list(tables._json_list(stream)) == values


def test_lines_of_json_under_the_name_of_a_list_are_read_as_lines(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    assert prompts(tmp_path / "a.json") == ["a", "b"]


@pytest.mark.parametrize(
    "text",
    ['[{"prompt": "a"}', '[{"prompt": "a"} {"prompt"', '"text"', '{"prompt": ["a"],\n "b": 1}', "", "[[[" * 5000],
)
def test_a_file_that_is_no_json_list_is_refused(tmp_path: Path, text: str):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json (is no JSON list|must hold a JSON list)"):
        prompts(tmp_path / "a.json")


def test_lines_and_cells_are_read_from_a_web_server(tmp_path: Path, web: Served):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}')
    (tmp_path / "a.csv").write_text("prompt\na\nb\n")
    assert [prompts(f"{web.url}/a.{kind}") for kind in ("jsonl", "csv")] == [["a", "b"]] * 2


def test_broken_lines_go_to_quarantine_and_the_others_are_read(tmp_path: Path):
    lines = ['{"prompt": "a"}', "{broken", "[1, 2]", '{"other": 1}', "", "[" * 100_000, '{"prompt": "b"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rows = list(read_table(str(tmp_path / "a.jsonl"), PROMPTS))
    good = [row.values["prompt"] for row in rows if isinstance(row, TableRow)]
    bad = [(row.row, row.reason) for row in rows if isinstance(row, Quarantined)]
    assert good == ["a", "b"]
    assert bad == [(row, Reason.RECORD_MALFORMED) for row in (1, 2, 3, 4)]
    assert any("has no 'prompt'; it has other" in row.detail for row in rows if isinstance(row, Quarantined))


def test_csv_rows_with_another_number_of_cells_go_to_quarantine(tmp_path: Path):
    (tmp_path / "a.csv").write_text('\ufeffprompt,x\n"a, b",1\nonly\nc,2,3\n"d\ne",\n')
    rows = list(read_table(str(tmp_path / "a.csv"), Columns(("prompt", "x"))))
    assert [row.values for row in rows if isinstance(row, TableRow)] == [
        {"prompt": "a, b", "x": "1"},
        {"prompt": "d\ne", "x": None},
    ]
    assert [row.row for row in rows if isinstance(row, Quarantined)] == [1, 2]


def test_names_of_images_that_lead_out_of_the_folder_go_to_quarantine(tmp_path: Path):
    names = ["a.png", "../../etc/passwd", "/etc/passwd", "http://127.0.0.1/a.png", 7, None]
    lines = [json.dumps({"prompt": "p", "image": name}) for name in names]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rows = list(read_table(str(tmp_path / "a.jsonl"), Columns(("prompt",), images=("image",))))
    found = [row.images["image"] if isinstance(row, TableRow) else row.reason for row in rows]
    assert found == [Pointer(str(tmp_path / "a.png")), *[Reason.IMAGE_MISSING] * 4, None]


def test_a_compressed_tar_is_refused_at_once(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read out of order; unpack it"):
        prompts(tmp_path / "a.jsonl", Columns(("prompt",), images=("image",), folder="images.tar.gz"))


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    (tmp_path / "a.xlsx").write_text("")
    with pytest.raises(ValueError, match=r"must end in one of \.parquet, \.jsonl"):
        prompts(tmp_path / "a.xlsx")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        prompts(tmp_path / "a.parquet")
