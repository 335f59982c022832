"""The only definition of a row: the columns of a preference data set, and what makes a row usable."""

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dpo_core.data.quarantine import Reason, RowRejected

SCHEMA = pa.schema(
    [
        ("are_different", pa.bool_()),
        ("best_image_uid", pa.string()),
        ("caption", pa.string()),
        ("created_at", pa.timestamp("ns")),
        ("has_label", pa.bool_()),
        ("image_0_uid", pa.string()),
        ("image_0_url", pa.string()),
        ("image_1_uid", pa.string()),
        ("image_1_url", pa.string()),
        ("jpg_0", pa.binary()),
        ("jpg_1", pa.binary()),
        ("label_0", pa.float64()),
        ("label_1", pa.float64()),
        ("model_0", pa.string()),
        ("model_1", pa.string()),
        ("ranking_id", pa.int64()),
        ("user_id", pa.int64()),
        ("num_example_per_prompt", pa.int64()),
        ("__index_level_0__", pa.int64()),
    ]
)
"""Pick-a-Pic v2. Files we write have exactly these columns (and CAPTION_PER_IMAGE where images have their own)."""

CAPTION_PER_IMAGE = ("caption_0", "caption_1")
LABELS = ("label_0", "label_1")
IMAGES = ("jpg_0", "jpg_1")
QUALITY = ("patch_quality_0", "patch_quality_1")
"""Patch quality maps, ``[h][w]`` on the latent grid, where a data set has them."""

_ESCAPE_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_JOINERS = "\u200c\u200d"


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One usable row: encoded images and the captions each may be trained with (more than one for list captions)."""

    pair_id: str
    chosen: bytes | None
    rejected: bytes | None
    chosen_captions: tuple[str, ...]
    rejected_captions: tuple[str, ...]


def caption_columns(per_image: bool) -> tuple[str, ...]:
    return CAPTION_PER_IMAGE if per_image else ("caption",)


def check_columns(schema: pa.Schema, file: str, *, per_image: bool, quality: bool = False) -> None:
    """Raise ValueError unless ``file`` has the columns that training reads, in types it can read."""
    captions = caption_columns(per_image)
    maps = QUALITY if quality else ()
    required = (*captions, *IMAGES, *LABELS, *maps)
    missing = [name for name in required if name not in schema.names]
    if missing:
        asked = {"data.captions=per_image": CAPTION_PER_IMAGE, "data.quality=true": QUALITY}
        who = " and ".join(setting for setting, names in asked.items() if set(missing) & set(names))
        hint = f" ({who} asks for them)" if who else ""
        raise ValueError(
            f"{file}: the column(s) {', '.join(missing)} are missing{hint}; needed are {', '.join(required)}, "
            f"the file has {', '.join(schema.names) or 'none'}"
        )
    for names, is_readable, allowed in (
        (captions, is_text, "text or a list of texts"),
        (IMAGES, is_image, "binary, or a struct with a binary field 'bytes'"),
        (LABELS, _is_number, "a number"),
        (maps, _is_map, "a list of lists of numbers"),
    ):
        for name in names:
            if not is_readable(schema.field(name).type):
                raise ValueError(f"{file}: column {name} has type {schema.field(name).type}; it must be {allowed}")


def read_texts(column: pa.ChunkedArray) -> list[tuple[str, ...] | None]:
    """The texts of each row, None for null. Survives bytes that are not UTF-8 (each becomes U+FFFD)."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], type=kind.value_type)
    if _is_list(kind):
        rows = column.cast(pa.list_(pa.binary())).to_pylist()
        return [None if row is None else tuple(_decode(text) for text in row if text is not None) for row in rows]
    return [None if text is None else (_decode(text),) for text in column.cast(pa.binary()).to_pylist()]


def read_images(column: pa.ChunkedArray) -> list[bytes | None]:
    """The encoded image of each row, None for null."""
    if pa.types.is_struct(column.type):
        return [None if row is None else row["bytes"] for row in column.to_pylist()]
    return column.to_pylist()


def clean_captions(texts: tuple[str, ...] | None) -> tuple[str, ...]:
    """The captions without control characters; empty ones of a list are left out.

    Raises RowRejected when nothing is left.
    """
    if texts is None:
        raise RowRejected(Reason.CAPTION_NULL)
    cleaned = tuple(text for text in map(clean_text, texts) if text)
    if not cleaned:
        raise RowRejected(Reason.CAPTION_EMPTY)
    return cleaned


def clean_text(text: str) -> str:
    """Strip terminal escapes, control and invisible formatting characters, and blanks at the ends.

    Joiners and tag characters stay (emoji and several scripts are spelled with them); a control blank becomes a space.
    """
    if not text.isprintable():
        text = "".join(_printable(character) for character in _ESCAPE_SEQUENCE.sub("", text))
    return text.strip(" " + _JOINERS)


def chosen_side(label_0: float | None, label_1: float | None, has_label: bool | None = True) -> int | None:
    """Which image people preferred: 0, 1, or None for a tie. Labels lie in [0, 1] and sum to 1.

    Raises RowRejected for labels that say nothing.
    """
    if has_label is False or label_0 is None or label_1 is None:
        raise RowRejected(Reason.LABEL_MISSING)
    if math.isnan(label_0) or math.isnan(label_1):
        raise RowRejected(Reason.LABEL_NAN)
    if not (0 <= label_0 <= 1 and 0 <= label_1 <= 1):
        raise RowRejected(Reason.LABEL_OUT_OF_RANGE, f"{label_0:g} and {label_1:g}")
    if abs(label_0 + label_1 - 1) > 1e-6:
        raise RowRejected(Reason.LABEL_INCONSISTENT, f"{label_0:g} and {label_1:g} do not sum to 1")
    return None if label_0 == label_1 else int(label_1 > label_0)


def make_pair(
    pair_id: str, side: int, images: Sequence[bytes | None], captions: Sequence[tuple[str, ...] | None]
) -> PreferencePair:
    """The pair of a labelled row; ``captions`` has one entry for both images or one per image.

    Raises RowRejected for a missing or empty caption and for a pair whose two images are the same bytes.
    """
    texts = [clean_captions(entry) for entry in captions]
    if images[0] and images[0] == images[1]:
        raise RowRejected(Reason.IMAGES_IDENTICAL)
    return PreferencePair(
        pair_id, images[side], images[1 - side], texts[side % len(texts)], texts[(1 - side) % len(texts)]
    )


def _decode(text: bytes) -> str:
    return text.decode("utf-8", errors="replace")


def _printable(character: str) -> str:
    if character.isprintable() or character in _JOINERS or "\U000e0020" <= character <= "\U000e007f":
        return character
    category = unicodedata.category(character)
    return (
        " " if character.isspace() or category in ("Zl", "Zp") else "" if category in ("Cc", "Cf", "Cs") else character
    )


def _is_list(kind: Any) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_text(kind: Any) -> bool:
    if _is_list(kind):
        return is_text(kind.value_type)
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or _is_binary(kind)
    )


def is_image(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)
    return _is_binary(kind)


def _is_binary(kind: Any) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_map(kind: Any) -> bool:
    return _is_list(kind) and _is_list(kind.value_type) and _is_number(kind.value_type.value_type)


def _is_number(kind: Any) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)
