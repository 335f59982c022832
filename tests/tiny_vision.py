"""Tiny, randomly initialised vision transformers for tests."""

from pathlib import Path
from typing import Any

import torch
from transformers import Dinov2Config, Dinov2Model, DINOv3ViTConfig, DINOv3ViTModel, ViTConfig, ViTModel

SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def make_tiny_vision(folder: str | Path, kind: str = "dinov2", *, patch: int = 4, seed: int = 0) -> Path:
    """A vision model folder: 16-pixel images, patches of ``patch`` pixels, features of 16 numbers."""
    torch.manual_seed(seed)
    shape = {**SIZES, "image_size": 16, "patch_size": patch}
    models = {
        "vit": lambda: ViTModel(ViTConfig(**shape, intermediate_size=32), add_pooling_layer=False),
        "dinov2": lambda: Dinov2Model(Dinov2Config(**shape, mlp_ratio=2)),
        "dinov3": lambda: DINOv3ViTModel(DINOv3ViTConfig(**shape, intermediate_size=32, num_register_tokens=3)),
    }
    models[kind]().eval().save_pretrained(str(folder))
    return Path(folder)
