"""Files of prompts: text and tags of every row, in file order."""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SUFFIXES = (".txt", ".jsonl", ".json", ".tsv", ".csv", ".parquet")
TEXT_COLUMNS = ("prompt", "Prompt", "caption", "text")
TAG_COLUMNS = {
    "Category": "category",
    "Challenge": "challenge",
    "category": "category",
    "tag": "task",
    "style": "style",
    "subject": "subject",
    "kind": "kind",
}


def is_text_set(file: Path) -> bool:
    return file.is_file() and file.suffix in SUFFIXES and not file.name.startswith((".", "LICENSE", "README", "SOURCE"))


def normalized(text: str) -> str:
    """The text as it is compared: one Unicode form, no case, no punctuation, single spaces."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[\W_]+", " ", plain).split())


def read_prompts(file: Path, *, by_file: bool = False) -> list[tuple[str, dict[str, str]]]:
    """(text, tags) of every row; ``by_file`` adds the file's name as a category where the file names none.

    Raises ValueError for a row without a text or a file that cannot be read.
    """
    extra = {"category": file.stem} if by_file else {}
    rows = read_rows(file, (*TEXT_COLUMNS, *TAG_COLUMNS))
    return [(text, extra | tags) for text, tags in (_row(row, file) for row in rows)]


def read_rows(file: Path, columns: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """The rows of a file as they are; a plain text becomes ``{"prompt": text}``, a list by category gets its name.

    ``columns`` limits what is read of parquet, which may hold images.
    """
    if file.suffix == ".parquet":
        import pyarrow.parquet as pq

        names = [name for name in pq.read_schema(file).names if columns is None or name in columns]
        return pq.read_table(file, columns=names).to_pylist()
    text = file.read_text("utf-8")
    if file.suffix == ".txt":
        return [{"prompt": line} for line in text.splitlines()]
    if file.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text)))
    if file.suffix == ".tsv":
        # PartiPrompts has prompts that begin with a quotation mark: with csv's usual quoting they would lose it.
        return list(csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))
    try:
        if file.suffix == ".jsonl":
            return [_item(json.loads(line), file) for line in text.splitlines() if line.strip()]
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if isinstance(whole, dict) and whole and all(isinstance(part, list) for part in whole.values()):
        return [{"category": name} | _item(item, file) for name, part in whole.items() for item in part]
    if not isinstance(whole, list):
        raise ValueError(f"{file} holds no prompts; allowed: a list, or lists by category")
    return [_item(item, file) for item in whole]


def _item(item: Any, file: Path) -> dict[str, Any]:
    if not isinstance(item, str | dict):
        raise ValueError(f"{file}: {str(item)[:60]!r} is neither a text nor a row")
    return {"prompt": item} if isinstance(item, str) else item


def _row(row: dict[str, Any], file: Path) -> tuple[str, dict[str, str]]:
    column = next((name for name in TEXT_COLUMNS if row.get(name) is not None), None)
    if column is None:
        columns = ", ".join(map(str, row)) or "none"
        raise ValueError(f"{file}: a row has no prompt; its columns are {columns}, allowed: {', '.join(TEXT_COLUMNS)}")
    return str(row[column]).strip(), {tag: str(row[name]) for name, tag in TAG_COLUMNS.items() if row.get(name)}
