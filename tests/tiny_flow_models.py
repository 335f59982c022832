"""Tiny pipelines with diffusion transformers, as tiny_models.py makes the U-Nets: random weights, a second each."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.tiny_models import LENGTH, byte_tokenizer

T5_WIDTH = 40
"""More than both CLIP encoders together, so that CLIP's states are padded."""


def make_tiny_sd3(folder: str | Path, *, seed: int = 0, dual: bool = True, t5: bool = True) -> Path:
    """A Stable Diffusion 3 pipeline folder (3.5 with ``dual``): 16-pixel images, 16x8x8 latents, patches of 2 x 2."""
    folder = Path(folder)
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=20,
        pos_embed_max_size=8,
        dual_attention_layers=(0,) if dual else (),
        qk_norm="rms_norm" if dual else None,
    )
    wake(transformer)
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=tiny_clip(CLIPTextModelWithProjection, width=16, projected=12),
        tokenizer=byte_tokenizer(folder / "tokenizer"),
        text_encoder_2=tiny_clip(CLIPTextModelWithProjection, width=8, projected=8),
        tokenizer_2=byte_tokenizer(folder / "tokenizer_2"),
        text_encoder_3=tiny_t5() if t5 else None,  # pyright: ignore[reportArgumentType]
        tokenizer_3=letter_tokenizer() if t5 else None,  # pyright: ignore[reportArgumentType]
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def make_tiny_flux(folder: str | Path, *, seed: int = 0, guidance: bool = True) -> Path:
    """A FLUX pipeline folder (dev with ``guidance``, else schnell): 16-pixel images, 4x8x8 latents packed to 16x4x4."""
    folder = Path(folder)
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=16,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 4, 8),
    )
    wake(transformer)
    scheduler: Any = FlowMatchEulerDiscreteScheduler(
        shift=3.0 if guidance else 1.0, use_dynamic_shifting=guidance, base_image_seq_len=4, max_image_seq_len=64
    )
    pipeline = FluxPipeline(
        transformer=transformer,
        scheduler=scheduler,
        vae=tiny_vae(latent_channels=4, shift_factor=0.1159, scaling_factor=0.3611),
        text_encoder=tiny_clip(CLIPTextModel, width=16, projected=16),
        tokenizer=byte_tokenizer(folder / "tokenizer"),
        text_encoder_2=tiny_t5(),
        tokenizer_2=letter_tokenizer(),  # pyright: ignore[reportArgumentType]
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def make_tiny_auraflow(folder: str | Path, *, seed: int = 0) -> Path:
    """An AuraFlow pipeline folder: 16-pixel images, 4x8x8 latents, patches of 2 x 2."""
    torch.manual_seed(seed)
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )
    wake(transformer)
    config: Any = UMT5Config(
        vocab_size=len(letter_tokenizer()), d_model=T5_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    pipeline = AuraFlowPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
        vae=tiny_vae(latent_channels=4, scaling_factor=0.13),
        text_encoder=UMT5EncoderModel(config),
        tokenizer=letter_tokenizer(),  # pyright: ignore[reportArgumentType]
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return Path(folder)


def tiny_vae(latent_channels: int = 16, **factors: float) -> AutoencoderKL:
    """An autoencoder that halves the sides."""
    blocks: Any = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    options: Any = {"use_quant_conv": False, "use_post_quant_conv": False} | factors
    return AutoencoderKL(**blocks, latent_channels=latent_channels, norm_num_groups=4, sample_size=16, **options)


def tiny_clip(kind: Any, *, width: int, projected: int) -> Any:
    """A CLIP text encoder of two layers over the byte tokenizer's 514 tokens."""
    config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=projected,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    return kind(config)


def tiny_t5() -> T5EncoderModel:
    """A T5 encoder of one layer over the letter tokenizer."""
    config = T5Config(
        vocab_size=len(letter_tokenizer()),
        d_model=T5_WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config)


def letter_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer whose pieces are single letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(chr(code), -3.0) for code in range(33, 127)]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def wake(model: torch.nn.Module) -> None:
    """Give every weight that starts at zero a value: or an untrained transformer would not see its input."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
