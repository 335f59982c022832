"""A preference set of 200,000 rows through `palate prepare` and an epoch of `palate train`: rows a second, peak memory.

python -m tests.benchmarks.scale [--rows 200000] [--folder FOLDER] [--workers 2] [--minutes 8]

Makes 2 GB of parquet (noise as JPEG, 5 KB each, no two alike) and a Stable Diffusion pipeline so small that reading is
a good part of the work. Each verb runs as users run it, in a process of its own that starts Ray on this machine; every
half second the memory of it and of all its children is noted. Own memory is what is resident and not shared; Ray's
object store is shared. With ``--folder`` and ``--minutes`` a verb that takes longer is stopped, and the same command
goes on where it was: what the verbs took until then stands in figures.json of the folder.
"""

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
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

from dpo_core.context import LocalContext
from dpo_core.data.plan import Plan
from dpo_core.data.schema import SCHEMA
from dpo_core.ledger import check_ledger, read_ledger
from ray_jobs.config import load_config
from ray_jobs.training.job import TrainJob
from tests.tiny_models import NOISE, byte_tokenizer, clip_config

ROWS_PER_FILE, ROWS_PER_GROUP = 5_000, 50
CAPTIONS = 2_000
SIDE = 64
GLOBAL_BATCH = 512
MB = 1 << 20


def make_model(folder: Path) -> Path:
    """8-pixel images, 4 x 4 x 4 latents."""
    torch.manual_seed(0)
    tokenizer: Any = byte_tokenizer(folder / "tokenizer")
    blocks: Any = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
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
    if folder.exists():
        return sum(file.stat().st_size for file in folder.iterdir())
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    aside.mkdir(parents=True)
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
        pq.write_table(table, aside / f"{first // ROWS_PER_FILE:05d}.parquet", row_group_size=ROWS_PER_GROUP)
    aside.replace(folder)
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


@dataclass
class Figures:
    """What a verb took, over all of its runs."""

    seconds: float = 0.0
    runs: int = 0
    total: float = 0.0
    shared: float = 0.0
    own: dict[str, float] = field(default_factory=dict)
    done: bool = False


class Bench:
    """Runs verbs, remembers in ``folder`` what they took, and stops those that take longer than ``limit`` seconds."""

    def __init__(self, folder: Path, limit: float | None) -> None:
        self._file, self._limit = folder / "figures.json", limit
        folder.mkdir(parents=True, exist_ok=True)
        known = json.loads(self._file.read_text()) if self._file.exists() else {}
        self._figures = {what: Figures(**figures) for what, figures in known.items()}

    def measured(self, what: str, rows: int, *words: object) -> None:
        """Run a verb until it is done and print what it took."""
        figures = self._figures.setdefault(what, Figures())
        if not figures.done:
            self._run(what, figures, [str(word) for word in words])
        print(f"{what}: {rows:,} rows in {figures.seconds:.0f} s of {figures.runs} run(s), start-up included, "
              f"{rows / figures.seconds:,.0f} rows/s")  # fmt: skip
        print(f"  all processes together own at most {figures.total:,.0f} MB, one shares at most {figures.shared:,.0f}")
        for kind, own in sorted(figures.own.items(), key=lambda item: -item[1]):
            if own > 100:
                print(f"  {own:8,.0f} MB  {kind}", flush=True)

    def _run(self, what: str, figures: Figures, words: list[str]) -> None:
        verb, *rest = words
        start = time.monotonic()
        command = [sys.executable, "-m", f"ray_jobs.{verb}", *rest]
        log = self._file.with_name(f"{verb}.log")
        with log.open("ab") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            watch = Watch(process.pid)
            watch.start()
            stopped = False
            try:
                process.wait(self._limit)
            except subprocess.TimeoutExpired:
                stopped = True
                process.send_signal(signal.SIGTERM)
                process.wait()
            watch.stop()
        figures.seconds += time.monotonic() - start
        figures.runs += 1
        figures.total, figures.shared = max(figures.total, watch.total), max(figures.shared, watch.shared)
        for kind, own in watch.own.items():
            name = f"{kind} (at most {watch.most[kind]} at once)"
            figures.own[name] = max(figures.own.get(name, 0.0), own)
        figures.done = process.returncode == 0 and not stopped
        self._file.write_text(json.dumps({name: asdict(each) for name, each in self._figures.items()}, indent=1))
        if stopped:
            print(f"{what}: stopped after {figures.seconds:.0f} s; the same command goes on", flush=True)
            raise SystemExit(75)
        if process.returncode:
            raise SystemExit(f"{what} failed:\n{log.read_text(errors='replace')[-3000:]}")


def check_epoch(run: Path) -> None:
    """Print how often the rows were visited. Raises ValueError where the ledger is not what the plan says."""
    job = load_config(TrainJob, run / "config.yaml", [])
    plan = Plan.build(job.data)
    proof = check_ledger(read_ledger(run / "ledger.jsonl"), plan, job.data, job.loop.share(LocalContext(run)))
    print(f"  {proof.pairs:,} pairs in {proof.updates} updates, {proof.lost} lost", flush=True)
    print(f"  epochs in which each of {plan.rows:,} rows was visited exactly once: {proof.whole_epochs}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, help="where to make it all; a temporary folder otherwise")
    parser.add_argument("--workers", type=int, default=2, help="encoding actors, and reading tasks beside one trainer")
    parser.add_argument("--minutes", type=float, help="stop a verb that takes longer; the same command goes on")
    arguments = parser.parse_args()
    rows, limit = arguments.rows, arguments.minutes and 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        bench = Bench(folder, limit)
        model, pairs, cache = make_model(folder / "model"), folder / "pairs", folder / "cache"
        start = time.monotonic()
        size = make_set(pairs, rows)
        print(f"made: {rows:,} rows, {size / 1e9:.2f} GB, in {time.monotonic() - start:.0f} s", flush=True)
        common = [f"family.model={model}", "data.resolution=8", "cluster.cpus_per_read=0.25"]
        bench.measured(
            "palate prepare", rows, "prepare", *common, f"data.paths=[{pairs}]", f"cache.folder={cache}",
            "cache.text=true", "cache.dtype=float16", "cache.shard_pairs=1000",
            f"cluster.num_workers={arguments.workers}", "cluster.cpus_per_worker=0.5",
        )  # fmt: skip
        train = [
            "loop.log_every=20", "loop.checkpoint_every=100", f"loop.max_steps={-(-rows // GLOBAL_BATCH)}",
            f"loop.global_batch_size={GLOBAL_BATCH}", f"loop.worker_batch_size={GLOBAL_BATCH}",
            "tracking.enabled=false", f"run.storage={folder / 'runs'}", "cluster.num_workers=1",
        ]  # fmt: skip
        bench.measured(
            "palate train, on the cache", rows, "train", *common, f"data.paths=[{cache}]", *train, "run.name=cache"
        )
        check_epoch(folder / "runs" / "cache")
        few = max(rows // 10, GLOBAL_BATCH)
        train[2] = f"loop.max_steps={few // GLOBAL_BATCH}"
        bench.measured("palate train, on the images", few // GLOBAL_BATCH * GLOBAL_BATCH, "train", *common,
                       f"data.paths=[{pairs}]", *train, "run.name=images")  # fmt: skip


if __name__ == "__main__":
    main()
