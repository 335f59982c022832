"""A preference set of 200,000 rows through `palate prepare` and an epoch of `palate train`: rows a second, peak memory.

python -m tests.benchmarks.scale [--rows 200000] [--folder FOLDER] [--workers 2]

Makes 2 GB of parquet (noise as JPEG, 5 KB each, no two alike) and a Stable Diffusion pipeline so small that reading is
a good part of the work. Each verb runs as users run it, in a process of its own that starts Ray on this machine; every
half second the memory of it and of all its children is noted. Own memory is what is resident and not shared; Ray's
object store is shared.
"""

import argparse
import io
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel

from dpo_core.data.schema import SCHEMA
from tests.tiny_models import NOISE, byte_tokenizer, clip_config

ROWS_PER_FILE, ROWS_PER_GROUP = 5_000, 50
CAPTIONS = 2_000
SIDE = 64
GLOBAL_BATCH = 512
MB = 1 << 20


def make_model(folder: Path) -> Path:
    """16-pixel images, 4 x 4 x 4 latents."""
    torch.manual_seed(0)
    tokenizer: Any = byte_tokenizer(folder / "tokenizer")
    blocks: Any = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (8, 8, 8),
    }
    vae = AutoencoderKL(**blocks, norm_num_groups=4, latent_channels=4, mid_block_add_attention=False)
    unet = UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    nothing: Any = None
    scheduler: Any = DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False)
    text_encoder = CLIPTextModel(clip_config(tokenizer, 16))
    pipeline = StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler, nothing, nothing, requires_safety_checker=False
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def make_set(folder: Path, rows: int) -> int:
    """Write the set; returns its bytes. A comment in each file makes images of a small stock different files."""
    folder.mkdir(parents=True)
    generator, stock = np.random.default_rng(0), []
    for _ in range(200):
        buffer = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(buffer, "JPEG", quality=92)
        stock.append(buffer.getvalue())
    empty = dict.fromkeys(SCHEMA.names)
    for first in range(0, rows, ROWS_PER_FILE):
        part = []
        for row in range(first, min(first + ROWS_PER_FILE, rows)):
            images = {f"jpg_{side}": named(stock[(2 * row + side) % len(stock)], 2 * row + side) for side in (0, 1)}
            labels = {"label_0": float(row % 2), "label_1": float(1 - row % 2), "has_label": True}
            part.append(empty | images | labels | {"caption": f"picture {row % CAPTIONS}", "ranking_id": row})
        table = pa.Table.from_pylist(part, schema=SCHEMA)
        pq.write_table(table, folder / f"{first // ROWS_PER_FILE:05d}.parquet", row_group_size=ROWS_PER_GROUP)
    return sum(file.stat().st_size for file in folder.iterdir())


def named(jpeg: bytes, number: int) -> bytes:
    comment = number.to_bytes(8, "big")
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]


class Watch(threading.Thread):
    """Peak memory of a process and its children, by what they are."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root = psutil.Process(pid)
        self._ended = threading.Event()
        self.own: dict[str, float] = defaultdict(float)
        self.most: dict[str, int] = defaultdict(int)
        self.total = 0.0
        self.shared = 0.0

    def run(self) -> None:
        while not self._ended.wait(0.5):
            self._look()

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def _look(self) -> None:
        counts, total = defaultdict(int), 0.0
        for process in [self._root, *self._root.children(recursive=True)]:
            try:
                memory, kind = process.memory_info(), kind_of(process)
            except psutil.Error:
                continue
            own = (memory.rss - memory.shared) / MB
            self.own[kind] = max(self.own[kind], own)
            self.shared = max(self.shared, memory.shared / MB)
            counts[kind] += 1
            total += own
        for kind, count in counts.items():
            self.most[kind] = max(self.most[kind], count)
        self.total = max(self.total, total)


def kind_of(process: psutil.Process) -> str:
    words = process.cmdline() or [process.name()]
    if words[0].startswith("ray::"):
        return words[0].removeprefix("ray::").split(".")[0].split("(")[0]
    if "ray_jobs." in " ".join(words):
        return "the verb itself"
    return next((Path(word).name for word in words if "python" not in word and not word.startswith("-")), words[0])


def measured(what: str, rows: int, *words: object) -> None:
    """Run a verb and print what it took."""
    start = time.monotonic()
    verb, *rest = map(str, words)
    command = [sys.executable, "-m", f"ray_jobs.{verb}", *rest]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    watch = Watch(process.pid)
    watch.start()
    output, _ = process.communicate()
    watch.stop()
    seconds = time.monotonic() - start
    if process.returncode:
        raise SystemExit(f"{what} failed:\n{output[-3000:]}")
    print(f"{what}: {rows:,} rows in {seconds:.0f} s, {rows / seconds:,.0f} rows/s", flush=True)
    print(f"  all processes together own at most {watch.total:,.0f} MB, share at most {watch.shared:,.0f} MB")
    for kind, own in sorted(watch.own.items(), key=lambda item: -item[1]):
        if own > 100:
            print(f"  {own:8,.0f} MB  {kind} (at most {watch.most[kind]} at once)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, help="where to make it all; a temporary folder otherwise")
    parser.add_argument("--workers", type=int, default=2, help="encoding actors, and reading tasks beside one trainer")
    arguments = parser.parse_args()
    rows = arguments.rows
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        model, pairs, cache = make_model(folder / "model"), folder / "pairs", folder / "cache"
        start = time.monotonic()
        size = make_set(pairs, rows)
        print(f"made: {rows:,} rows, {size / 1e9:.2f} GB, in {time.monotonic() - start:.0f} s", flush=True)
        common = [f"family.model={model}", "data.resolution=16", "cluster.cpus_per_read=0.25"]
        measured(
            "palate prepare", rows, "prepare", *common, f"data.paths=[{pairs}]", f"cache.folder={cache}",
            "cache.text=true", "cache.dtype=float16", "cache.shard_pairs=1000",
            f"cluster.num_workers={arguments.workers}", "cluster.cpus_per_worker=0.5",
        )  # fmt: skip
        train = [
            "loop.log_every=20", "loop.checkpoint_every=100", f"loop.max_steps={-(-rows // GLOBAL_BATCH)}",
            f"loop.global_batch_size={GLOBAL_BATCH}", f"loop.worker_batch_size={GLOBAL_BATCH}",
            "tracking.enabled=false", f"run.storage={folder / 'runs'}", "cluster.num_workers=1",
        ]  # fmt: skip
        measured(
            "palate train, on the cache", rows, "train", *common, f"data.paths=[{cache}]", *train, "run.name=cache"
        )
        few = max(rows // 10, GLOBAL_BATCH)
        train[2] = f"loop.max_steps={few // GLOBAL_BATCH}"
        measured("palate train, on the images", few // GLOBAL_BATCH * GLOBAL_BATCH, "train", *common,
                 f"data.paths=[{pairs}]", *train, "run.name=images")  # fmt: skip


if __name__ == "__main__":
    main()
