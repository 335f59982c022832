"""ImageReward: how much would people like this image for this prompt? BLIP trained on ranked images."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from PIL import Image

from eval.scorers.base import DTYPES, Precision, ScoreFunction, Scorer, clip_pixels
from eval.scorers.weights import empty, find_file, in_folder, load_exactly, read_state

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of raw rewards over the authors' validation data; a reward is given in these units."""
WORDS = 35
"""WordPieces of the prompt that are read, start and end included; the rest has no influence."""
VISION: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}
TEXT: dict[str, Any] = {
    "vocab_size": 30524,
    "hidden_size": 768,
    "encoder_hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
    "is_decoder": True,
}
HEAD = (768, 1024, 128, 64, 16, 1)
RENAMED = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "blocks.": "encoder.layers.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.qkv.": ".self_attn.qkv.",
    ".attn.proj.": ".self_attn.projection.",
}


class ImageReward(Scorer):
    """ImageReward v1.0 (Xu et al., arXiv 2304.05977): BLIP ViT-L/16 looks at the image, BERT reads the prompt with
    cross-attention to it, and a head rates the first token. About -2.5 to 2; zero is an average image."""

    kind: Literal["imagereward"] = "imagereward"
    weights: str = "zai-org/ImageReward"
    """A checkpoint file, or a folder or hub id with ImageReward.pt."""
    tokenizer: str = "google-bert/bert-base-uncased"
    """Folder or hub id of BERT's tokenizer."""
    dtype: Precision = "float32"
    """Precision of both encoders; the head is float32."""

    columns: ClassVar[dict[str, str]] = {"reward": "about -2.5 to 2; mean 0 and deviation 1 on the authors' data"}
    primary: ClassVar[str] = "reward"
    preprocessing: ClassVar[str] = "shortest side 224 bicubic (Pillow), centre crop, CLIP mean and std"
    scale: ClassVar[str] = "(head - 0.167) / 1.033"

    @property
    def variant_id(self) -> str:
        return "imagereward-v1.0"

    def places(self) -> list[str | None]:
        return [in_folder(self.weights, "ImageReward.pt")]

    def load(self, device: str | torch.device = "cpu") -> ScoreFunction:
        """Raises ValueError if the checkpoint or the tokenizer is not there or not of this network."""
        from transformers import BertTokenizer

        file = find_file(self.weights, "ImageReward.pt")
        network: Any = load_exactly(empty(Network), renamed(read_state(file)), file)
        network.eyes.to(device, DTYPES[self.dtype])
        network.reader.to(device, DTYPES[self.dtype])
        network.head.to(device, torch.float32)
        try:
            tokenizer: Any = BertTokenizer.from_pretrained(self.tokenizer)
        except (OSError, ValueError) as error:
            raise ValueError(f"imagereward scorer: cannot load the tokenizer {self.tokenizer!r}: {error}") from error

        @torch.inference_mode()
        def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[dict[str, float]]:
            words = tokenizer(
                list(prompts), padding="max_length", truncation=True, max_length=WORDS, return_tensors="pt"
            ).to(device)
            pixels = clip_pixels(images, VISION["image_size"]).to(device, DTYPES[self.dtype])
            return [{"reward": value} for value in network(pixels, words.input_ids, words.attention_mask).tolist()]

        return score


class Network(torch.nn.Module):
    """The three parts, of transformers' BLIP."""

    def __init__(self) -> None:
        from transformers import BlipTextConfig, BlipVisionConfig
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        super().__init__()
        self.eyes = BlipVisionModel(BlipVisionConfig(**VISION))
        self.reader = BlipTextModel(BlipTextConfig(**TEXT), add_pooling_layer=False)
        pairs = pairwise(HEAD)
        # Between the linear layers the original has dropout and no activations: nothing, when it scores.
        self.head = torch.nn.ModuleList(torch.nn.Linear(before, after) for before, after in pairs)

    def forward(self, pixels: torch.Tensor, words: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Rewards ``[n]`` of pixels ``[n, 3, 224, 224]`` and words ``[n, length]``."""
        seen = self.eyes(pixel_values=pixels).last_hidden_state
        # The config's is_decoder makes the layers of cross-attention; the call's keeps the text bidirectional.
        read = self.reader(input_ids=words, attention_mask=mask, encoder_hidden_states=seen, is_decoder=False)
        value = read.last_hidden_state[:, 0].float()
        for layer in self.head:
            value = layer(value)
        return (value[:, 0] - MEAN) / STD


def renamed(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The published checkpoint's names as :class:`Network`'s; the projections of BLIP's pre-training are left out."""
    out = {}
    for name, tensor in state.items():
        if name.startswith("blip.visual_encoder."):
            out["eyes." + _of_vision(name.removeprefix("blip.visual_encoder."))] = tensor
        elif name.startswith("blip.text_encoder.") and not name.endswith("position_ids"):
            out["reader." + name.removeprefix("blip.text_encoder.")] = tensor
        elif name.startswith("mlp.layers."):
            _, _, place, kind = name.split(".")
            out[f"head.{(int(place) + 1) // 2 if int(place) < 7 else 4}.{kind}"] = tensor
    return out


def _of_vision(name: str) -> str:
    if name.startswith("norm."):
        return "post_layernorm." + name.removeprefix("norm.")
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name
