"""Images per second and core from JPEG bytes to a micro-batch, beside the chain of the original scripts.

python -m tests.benchmarks.decode [--images 16] [--repeats 7]

The yardstick is what the Diffusion-DPO scripts do in their loader: Pillow, Resize, CenterCrop, ToTensor, Normalize, a
concatenation per pair and a stack per batch. Ours ends with the same images as uint8 in a `PairBatch`; they become
floats on the device that encodes them. One thread, CPU time, the best of some rounds; only the ratio means something
elsewhere. The images are the photographs of tests/assets, enlarged and given a grain, so that their files are as large
as those of real photographs.
"""

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torchvision import transforms

from dpo_core.data.loader import BatchLoader
from dpo_core.data.plan import Plan
from dpo_core.data.schema import SCHEMA
from dpo_core.data.section import DataSection

ASSETS = Path(__file__).parents[1] / "assets"
SIZES = ((512, 512), (768, 512), (1024, 512), (1024, 1024))
"""Side of the stored images, side of the crops."""
GRAIN = 4.0
QUALITY = 92


def photographs(side: int, count: int) -> list[bytes]:
    """JPEG files of ``side`` pixels a side."""
    stored = pq.read_table(ASSETS / "real_pairs.parquet", columns=["jpg_0", "jpg_1"]).to_pylist()
    sources = [row[name] for row in stored for name in ("jpg_0", "jpg_1")]
    generator, made = np.random.default_rng(0), []
    for index in range(count):
        image = Image.open(io.BytesIO(sources[index % len(sources)])).convert("RGB")
        pixels = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)).astype(np.float32)
        pixels = pixels + generator.normal(0, GRAIN, pixels.shape)
        buffer = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
        made.append(buffer.getvalue())
    return made


def originals(files: list[bytes], resolution: int) -> torch.Tensor:
    """A batch as the original scripts make it, float32 ``[pairs, 6, H, W]``."""
    chain = transforms.Compose(
        [
            transforms.Resize(resolution, interpolation=transforms.InterpolationMode.BILINEAR),
            transforms.CenterCrop(resolution),
            transforms.ToTensor(),
            transforms.Normalize([0.5], [0.5]),
        ]
    )
    images: list[Any] = [chain(Image.open(io.BytesIO(data)).convert("RGB")) for data in files]
    pairs = [torch.cat([images[index], images[index + 1]]) for index in range(0, len(images), 2)]
    return torch.stack(pairs).to(memory_format=torch.contiguous_format).float()


def ours(files: list[bytes], resolution: int, folder: Path) -> Callable[[], object]:
    """Loads a batch of the same pairs."""
    rows = []
    for index in range(0, len(files), 2):
        row = dict.fromkeys(SCHEMA.names) | {"caption": "a photograph", "label_0": 1.0, "label_1": 0.0}
        rows.append(row | {"ranking_id": index, "jpg_0": files[index], "jpg_1": files[index + 1]})
    path = folder / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
    section = DataSection(paths=[str(path)], resolution=resolution)
    plan, loader = Plan.build(section), BatchLoader(section, 0, None)
    slots = [plan.slot(index, 0) for index in range(plan.rows)]
    return lambda: loader.load(slots)


def seconds(work: Callable[[], object], repeats: int) -> float:
    work()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return min(taken)


def main() -> None:
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("stored   crop   KB/image   originals images/s   ours images/s   ratio")
    for side, resolution in SIZES:
        files = photographs(side, arguments.images)
        with tempfile.TemporaryDirectory() as folder:
            load = ours(files, resolution, Path(folder))
            times = [
                seconds(lambda files=files, resolution=resolution: originals(files, resolution), arguments.repeats),
                seconds(load, arguments.repeats),
            ]
        rates = [len(files) / each for each in times]
        size = sum(map(len, files)) / len(files) / 1e3
        ratio = times[0] / times[1]
        print(f"{side:6} {resolution:6} {size:10.0f} {rates[0]:20.0f} {rates[1]:15.0f} {ratio:6.2f}x", flush=True)


if __name__ == "__main__":
    main()
