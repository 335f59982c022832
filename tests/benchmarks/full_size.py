"""A full-size random model and one training run of it, with peak memory: does the real thing fit where it should?

python -m tests.benchmarks.full_size [--family sd15] [--folder FOLDER] [--keep] [section.field=value ...]

Makes a pipeline folder of the family's real architecture with random weights (860 million parameters in the denoiser of
SD1.5), trains it with `palate train` in a process of its own and prints that process's peak resident memory and the
seconds of each update. The weights mean nothing; sizes, shapes and precision are the real ones.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tests.tiny_data import make_pairs
from tests.tiny_models import byte_tokenizer

OVERRIDES = [
    "policy.method=lora", "data.resolution=128", "loop.max_steps=1", "loop.global_batch_size=1", "loop.log_every=1",
    "loop.worker_batch_size=1", "loop.checkpoint_every=1", "cluster.num_workers=0", "tracking.enabled=false",
]  # fmt: skip


def make_sd15(folder: Path) -> Path:
    """Stable Diffusion 1.5's architecture in float32, written part by part so that no two are in memory at once."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    tokenizer: Any = byte_tokenizer(folder / "tokenizer")
    tokenizer.save_pretrained(folder / "tokenizer")
    scheduler: Any = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.save_pretrained(folder / "scheduler")
    UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).save_pretrained(folder / "unet")
    blocks: Any = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
    }
    AutoencoderKL(**blocks, layers_per_block=2, sample_size=512).save_pretrained(folder / "vae")
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
            max_position_embeddings=77, projection_dim=768, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    ).save_pretrained(folder / "text_encoder")  # fmt: skip
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.38.0",
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))
    return folder


MAKERS = {"sd15": make_sd15}


def run(family: str, folder: Path, overrides: list[str]) -> tuple[float, float]:
    """Train the model in ``folder / family`` in a process of its own; (peak resident memory in GiB, seconds in all)."""
    pairs = make_pairs(folder / "pairs", 4, side=160, shards=1)
    given = [f"family.kind={family}", f"family.model={folder / family}", f"data.paths=[{pairs}]"]
    command = [sys.executable, "-m", "ray_jobs.train", "--config", "tune_configs/train/sd15_dpo_lora.yaml"]
    began = time.perf_counter()
    subprocess.run([*command, *given, f"run.storage={folder / 'runs'}", *OVERRIDES, *overrides], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return peak, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", choices=sorted(MAKERS), default="sd15")
    parser.add_argument("--folder", type=Path, help="where the model goes (4.3 GB); a temporary folder by default")
    parser.add_argument("--keep", action="store_true", help="leave the model there")
    arguments, overrides = parser.parse_known_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="full-size-"))
    try:
        if not (folder / arguments.family / "model_index.json").exists():
            MAKERS[arguments.family](folder / arguments.family)
        peak, seconds = run(arguments.family, folder, overrides)
        print(f"{arguments.family}: peak resident memory {peak:.1f} GiB, {seconds:.0f} s with loading and export")
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
