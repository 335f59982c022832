"""Assembles the embedded model: a Stable Diffusion pipeline of 64-pixel images in a diffusers folder.

python -m dpo_core.embedded.build --out DIR (--vae VAE_DIR | --trained MODEL_DIR) [--fp16]
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dpo_core.embedded.tokenizer import MAX_LENGTH, build_tokenizer
from dpo_core.embedded.vae import new_vae

TEXT_WIDTH = 128


def build(out_dir: str | Path, vae_dir: str | Path | None = None, *, seed: int = 0, fp16: bool = False) -> Path:
    """Writes the pipeline folder and returns its path; ``StableDiffusionPipeline.from_pretrained`` loads it.

    The UNet is fresh, the text encoder random and meant to stay so; both are functions of ``seed``. Without ``vae_dir``
    the autoencoder is untrained as well. Raises ValueError if ``vae_dir`` holds no autoencoder.
    """
    if vae_dir is not None and not (Path(vae_dir) / "config.json").is_file():
        raise ValueError(f"{str(vae_dir)!r} holds no autoencoder: it must be a folder that dpo_core.embedded.vae wrote")
    with tempfile.TemporaryDirectory() as scratch, torch.random.fork_rng(devices=[]):
        tokenizer = build_tokenizer(scratch)
        torch.manual_seed(seed)
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL.from_pretrained(vae_dir) if vae_dir else new_vae(),
            text_encoder=new_text_encoder(tokenizer),
            tokenizer=tokenizer,
            unet=new_unet(),
            scheduler=new_scheduler(),  # pyright: ignore[reportArgumentType]
            safety_checker=None,  # pyright: ignore[reportArgumentType]
            feature_extractor=None,  # pyright: ignore[reportArgumentType]
            requires_safety_checker=False,
        )
        return save(pipeline, out_dir, fp16=fp16)


def repack(out_dir: str | Path, trained: str | Path, *, fp16: bool = False) -> Path:
    """The pipeline that training left in ``trained``, written as ``build`` writes it; raises ValueError for another."""
    if not (Path(trained) / "model_index.json").is_file():
        raise ValueError(f"{str(trained)!r} holds no pipeline: it must be the folder 'model' of a training run")
    return save(StableDiffusionPipeline.from_pretrained(trained), out_dir, fp16=fp16)


def save(pipeline: StableDiffusionPipeline, out_dir: str | Path, *, fp16: bool) -> Path:
    """Write the pipeline and nothing else into ``out_dir``, in half or single precision; returns the folder."""
    pipeline.to(torch.float16 if fp16 else torch.float32)
    pipeline.save_pretrained(out_dir, safe_serialization=True)
    build_tokenizer(Path(out_dir) / "tokenizer")
    return Path(out_dir)


def new_unet() -> UNet2DConditionModel:
    """A fresh denoiser of 4 x 16 x 16 latents with cross attention at 8 x 8 and 4 x 4."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A random text encoder whose last hidden state keeps word and position of every token readable.

    CLIP starts embeddings so small (0.02) that the layers would drown them; here they are of unit size, and the layers
    add a random mixture of what was said before.
    """
    ids: Any = {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")}
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        projection_dim=TEXT_WIDTH,
        **ids,
    )
    encoder = CLIPTextModel(config)
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if name.endswith("_embedding.weight"):
                torch.nn.init.normal_(weight, std=1.0)
            elif name.endswith("proj.weight") or (".mlp." in name and weight.ndim == 2):
                torch.nn.init.normal_(weight, std=0.5 / weight.shape[1] ** 0.5)
    return encoder.requires_grad_(False)


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule: epsilon, 1000 steps, scaled-linear betas."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def main(argv: list[str] | None = None) -> int:
    """Command line of ``build``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, help="folder for the pipeline")
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--vae", help="folder of a trained autoencoder; without it an untrained one is used")
    parts.add_argument("--trained", help="folder of a trained pipeline, to be written anew instead of a fresh one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fp16", action="store_true", help="save in half precision")
    args = parser.parse_args(argv)
    if args.trained:
        print(repack(args.out, args.trained, fp16=args.fp16))
    else:
        print(build(args.out, args.vae, seed=args.seed, fp16=args.fp16))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
