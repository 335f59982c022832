"""Tiny, randomly initialised pipelines for tests: real architectures, no trained weights, made in a second."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

LENGTH = 16
NOISE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def byte_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's byte-level tokenizer with no merges: every byte is a token, so any text can be read."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [code for code in range(256) if code not in printable]
    letters = [chr(code) for code in printable] + [chr(256 + i) for i in range(len(rest))]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH)


def make_tiny_sd(folder: str | Path, *, prediction_type: Any = "epsilon", seed: int = 0) -> Path:
    """A Stable Diffusion pipeline folder: 16-pixel images, 4x8x8 latents, about 100 thousand parameters."""
    folder = Path(folder)
    torch.manual_seed(seed)
    tokenizer: Any = byte_tokenizer(folder / "tokenizer")
    text_encoder = CLIPTextModel(clip_config(tokenizer, 16))
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    vae = make_tiny_vae()
    scheduler: Any = DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False, prediction_type=prediction_type)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def make_tiny_sdxl(folder: str | Path, *, seed: int = 0) -> Path:
    """A Stable Diffusion XL pipeline folder: 16-pixel images, 4x8x8 latents, about 150 thousand parameters."""
    folder = Path(folder)
    torch.manual_seed(seed)
    tokenizers: list[Any] = [byte_tokenizer(folder / name) for name in ("tokenizer", "tokenizer_2")]
    pipeline = StableDiffusionXLPipeline(
        vae=make_tiny_vae(scaling_factor=0.13025),
        text_encoder=CLIPTextModel(clip_config(tokenizers[0], 8)),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(tokenizers[1], 16)),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=make_tiny_xl_unet(time_ids=6, cross_attention_dim=8 + 16, pooled=16),
        scheduler=EulerDiscreteScheduler(**NOISE),  # pyright: ignore[reportArgumentType]
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def make_tiny_sdxl_refiner(folder: str | Path, *, seed: int = 0) -> Path:
    """The same with only the second text encoder, and an aesthetic score among the time ids."""
    folder = Path(folder)
    torch.manual_seed(seed)
    tokenizer: Any = byte_tokenizer(folder / "tokenizer_2")
    nothing: Any = None
    pipeline = StableDiffusionXLImg2ImgPipeline(
        vae=make_tiny_vae(scaling_factor=0.13025),
        text_encoder=nothing,
        text_encoder_2=CLIPTextModelWithProjection(clip_config(tokenizer, 16)),
        tokenizer=nothing,
        tokenizer_2=tokenizer,
        unet=make_tiny_xl_unet(time_ids=5, cross_attention_dim=16, pooled=16),
        scheduler=EulerDiscreteScheduler(**NOISE),  # pyright: ignore[reportArgumentType]
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def make_tiny_xl_unet(*, time_ids: int, cross_attention_dim: int, pooled: int) -> UNet2DConditionModel:
    """A U-Net that is told ``time_ids`` numbers and a pooled state beside the text."""
    depths: dict[str, Any] = {"attention_head_dim": (2, 4), "transformer_layers_per_block": (1, 2)}
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross_attention_dim,
        **depths,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * time_ids + pooled,
        norm_num_groups=4,
    )


def make_tiny_vae(**factors: float) -> AutoencoderKL:
    """An autoencoder of 16-pixel images that halves their sides."""
    blocks: Any = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    return AutoencoderKL(**(blocks | factors), latent_channels=4, norm_num_groups=4, sample_size=16)


def clip_config(tokenizer: Any, width: int) -> CLIPTextConfig:
    """Two layers over the byte tokenizer."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
