"""A tiny IP-Adapter with random weights for a tiny U-Net, and the vision model that it reads."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import ImageProjection, IPAdapterPlusImageProjection
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from dpo_core.families.ip_adapter import original_resampler

WIDTH, HIDDEN, TOKENS = 8, 64, 4


def make_tiny_ip_adapter(folder: Path, unet: Any, *, plus: bool = True) -> tuple[Path, Path]:
    """The adapter's file and the vision model's folder."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=224,
        patch_size=112, projection_dim=WIDTH,
    )  # fmt: skip
    CLIPVisionModelWithProjection(vision).save_pretrained(folder / "image_encoder")
    text: int = unet.config.cross_attention_dim
    if plus:
        sizes = {"embed_dims": WIDTH, "output_dims": text, "hidden_dims": HIDDEN, "heads": 1, "num_queries": TOKENS}
        projection = original_resampler(IPAdapterPlusImageProjection(**sizes).state_dict())
    else:
        layer = ImageProjection(image_embed_dim=WIDTH, cross_attention_dim=text, num_image_text_embeds=4)
        names = {"image_embeds": "proj", "norm": "norm"}
        projection = {
            f"{names[name.split('.')[0]]}.{name.split('.')[1]}": tensor for name, tensor in layer.state_dict().items()
        }
    state = {f"image_proj.{name}": tensor for name, tensor in projection.items()}
    for index, name in enumerate(unet.attn_processors):
        if ".attn2." in name:
            width = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            for key in ("to_k_ip", "to_v_ip"):
                state[f"ip_adapter.{index}.{key}.weight"] = 0.5 * torch.randn(width, text)
    save_file(state, folder / "adapter.safetensors")
    return folder / "adapter.safetensors", folder / "image_encoder"
