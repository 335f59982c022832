"""Every scorer that can run on tiny random weights, as configs."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from tests.eval.scorers.test_clip_t import CONFIG
from tests.tiny_models import LENGTH, byte_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VISION: dict[str, Any] = SIZES | {"image_size": 28, "patch_size": 14, "projection_dim": 24}


def tiny_scorers(folder: Path) -> list[dict[str, Any]]:
    """The checker first, so that it makes the headline; the networks' weights lie in ``folder``."""
    torch.manual_seed(0)
    return [{"kind": "shapes"}, *_open_clip(folder / "clip"), _aesthetic(folder / "aes"), _pickscore(folder / "pick")]


def _open_clip(folder: Path) -> list[dict[str, Any]]:
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG))
    torch.save(open_clip.CLIP(**CONFIG["model_cfg"]).state_dict(), folder / "open_clip_pytorch_model.bin")
    place = {"model": f"local-dir:{folder}", "weights": None}
    return [{"kind": "clip", **place}, {"kind": "clip_t", **place}]


def _aesthetic(folder: Path) -> dict[str, Any]:
    CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)).save_pretrained(folder)
    save_file({"weight": torch.randn(24), "bias": torch.tensor(5.0)}, folder / "head.safetensors")
    return {"kind": "aesthetic", "clip": str(folder), "head": str(folder / "head.safetensors")}


def _pickscore(folder: Path) -> dict[str, Any]:
    tokenizer = byte_tokenizer(folder)
    tokenizer.save_pretrained(folder)
    text = SIZES | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH,
        "projection_dim": 24,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)).save_pretrained(folder)
    return {"kind": "pickscore", "model": str(folder), "tokenizer": str(folder)}
