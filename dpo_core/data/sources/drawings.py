"""The embedded world as preference rows: a drawing of the caption against a drawing of another one."""

import argparse
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from dpo_core.data.schema import SCHEMA
from dpo_core.data.sources.shapes import CAPTION, COLOURS, OPPOSITE, SHAPES, captions, draw, is_heldout

ROWS_PER_FILE, ROWS_PER_GROUP = 2048, 128


def preference_row(
    index: int, caption: str, images: tuple[bytes, bytes], label_0: float, models: tuple[str, str]
) -> dict[str, Any]:
    """One row in the Pick-a-Pic schema; ``label_0`` is 1, 0 or 0.5 for a tie."""
    uids = [hashlib.sha256(image).hexdigest()[:32] for image in images]
    return dict.fromkeys(SCHEMA.names) | {
        "are_different": images[0] != images[1],
        "best_image_uid": {1.0: uids[0], 0.0: uids[1]}.get(label_0, "none"),
        "caption": caption,
        "has_label": True,
        "image_0_uid": uids[0],
        "image_1_uid": uids[1],
        "jpg_0": images[0],
        "jpg_1": images[1],
        "label_0": label_0,
        "label_1": 1.0 - label_0,
        "model_0": models[0],
        "model_1": models[1],
        "ranking_id": index,
        "user_id": 0,
        "num_example_per_prompt": 1,
    }


def jpeg(pixels: NDArray[np.uint8] | Image.Image) -> bytes:
    """JPEG bytes without chroma subsampling: at 64 pixels it would smear the colours that are asked for."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def write_rows(folder: str | Path, rows: list[dict[str, Any]], *, rows_per_file: int = ROWS_PER_FILE) -> list[Path]:
    """Write ``rows`` as parquet shards that Ray Data reads in small pieces; returns the files."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for start in range(0, len(rows), rows_per_file):
        table = pa.Table.from_pylist(rows[start : start + rows_per_file], schema=SCHEMA)
        files.append(folder / f"pairs-{start // rows_per_file:05d}.parquet")
        pq.write_table(table, files[-1], row_group_size=ROWS_PER_GROUP)
    return files


def near_miss(caption: str, draw_number: float) -> str:
    """A training caption that differs from ``caption`` in one thing: relation, a colour, a shape, or an exchange.

    ``draw_number`` in [0, 1) chooses among all there are. ``caption`` has two shapes; what is held out stays held out.
    """
    match = CAPTION.fullmatch(caption)
    if match is None or match[3] is None:
        raise ValueError(
            f"no near miss of {caption!r}: it must read 'a <colour> <shape> <relation> a <colour> <shape>'"
        )
    parts = list(match.groups())
    changed = [[*parts[:2], OPPOSITE[parts[2]], *parts[3:]], [parts[3], *parts[1:3], parts[0], parts[4]]]
    changed.append([parts[0], parts[4], *parts[2:4], parts[1]])
    changed += [[*parts[:place], word, *parts[place + 1 :]] for place in (0, 3) for word in COLOURS]
    changed += [[*parts[:place], word, *parts[place + 1 :]] for place in (1, 4) for word in SHAPES]
    texts = dict.fromkeys("a {} {} {} a {} {}".format(*words) for words in changed if words[0] != words[3])
    allowed = [text for text in texts if text != caption and not is_heldout(text)]
    return allowed[int(draw_number * len(allowed))]


def write_drawings(
    folder: str | Path, count: int, seed: int = 0, *, caption_noise: float = 0.0, spoiled: float = 0.0
) -> list[Path]:
    """``count`` rows over the training captions, each a drawing preferred to a drawing of another caption.

    What the embedded model was taught on, by the SFT objective, which looks at the chosen image alone. A share of
    ``caption_noise`` of the rows with two shapes has a near miss as its chosen image, as captions found on the web are
    often wrong; a share of ``spoiled`` is drawn badly. The model learns both ways, and which is wanted it is not told.
    """
    texts = captions("train", singles=True)
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        right = index % len(texts)
        wrong = (right + int(rng.integers(1, len(texts)))) % len(texts)
        shown, noise, number = texts[right], rng.random(), rng.random()
        badly = bool(rng.random() < spoiled)
        if noise < caption_noise and any(relation in shown for relation in OPPOSITE):
            shown = near_miss(shown, number)
        chosen, rejected = draw(shown, seed * 1_000_003 + index, spoiled=badly), draw(texts[wrong], index)
        images = [jpeg(chosen), jpeg(rejected)]
        first = bool(rng.integers(2))
        ordered = (images[0], images[1]) if first else (images[1], images[0])
        rows.append(preference_row(index, texts[right], ordered, float(first), ("world", "world")))
    return write_rows(folder, rows)


def main(argv: list[str] | None = None) -> int:
    """Command line of ``write_drawings``."""
    parser = argparse.ArgumentParser(description="Write drawings of the embedded world as preference rows.")
    parser.add_argument("--out", required=True, help="folder for the parquet files")
    parser.add_argument("--count", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--caption-noise", type=float, default=0.0, help="share of rows whose drawing is a near miss")
    parser.add_argument("--spoiled", type=float, default=0.0, help="share of rows whose drawing is spoiled")
    args = vars(parser.parse_args(argv))
    write_drawings(args.pop("out"), args.pop("count"), **args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
