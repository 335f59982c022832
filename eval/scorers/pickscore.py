"""PickScore: which image of a prompt would people pick? CLIP ViT-H/14 trained on Pick-a-Pic's preferences."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from PIL import Image

from eval.scorers.base import DTYPES, Identity, Precision, ScoreFunction, Scorer, clip_pixels, cosines, embedding
from eval.scorers.weights import empty, from_folder, load_exactly, read_state


class PickScore(Scorer):
    """PickScore v1 (Kirstain et al., arXiv 2305.01569): exp(logit scale) x cosine of prompt and image embedding. The
    difference of two images of one prompt is the logit that the first one is preferred.

    It was trained on Pick-a-Pic v1, so it has seen most of that set's prompts and shares the taste of models trained on
    it: report a scorer of another origin beside it.
    """

    kind: Literal["pickscore"] = "pickscore"
    model: str = "yuvalkirstain/PickScore_v1"
    """A folder or hub id in transformers format, or a checkpoint file of its ViT-H/14."""
    tokenizer: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    """Folder or hub id of the tokenizer it was trained with. open_clip's splits curly quotes and HTML differently."""
    unit: Literal["logit", "cosine"] = "logit"
    """logit: times the checkpoint's exp(logit scale), about 100, so 18 to 24; cosine: without, as other code prints."""
    dtype: Precision = "float32"
    """Precision of the towers; float16 on a GPU."""

    columns: ClassVar[dict[str, str]] = {"pickscore": "about 18 to 24; with unit cosine about 0.18 to 0.24"}
    primary: ClassVar[str] = "pickscore"
    preprocessing: ClassVar[str] = "shortest side 224 bicubic (Pillow), centre crop, CLIP mean and std"

    @property
    def variant_id(self) -> str:
        return "pickscore-v1"

    def places(self) -> list[str | None]:
        return [self.model]

    def identity(self) -> Identity:
        return replace(super().identity(), scale="exp(logit scale) x cosine" if self.unit == "logit" else "cosine")

    def load(self, device: str | torch.device = "cpu") -> ScoreFunction:
        """Raises ValueError if the weights or the tokenizer are not there or of another kind."""
        from transformers import CLIPTokenizer

        network = self.network().to(device, DTYPES[self.dtype])
        try:
            tokenizer: Any = CLIPTokenizer.from_pretrained(self.tokenizer)
        except (OSError, ValueError) as error:
            raise ValueError(f"pickscore scorer: cannot load the tokenizer {self.tokenizer!r}: {error}") from error
        size, length = network.config.vision_config.image_size, network.config.text_config.max_position_embeddings
        scale = network.logit_scale.float().exp().item() if self.unit == "logit" else 1.0

        @torch.inference_mode()
        def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[dict[str, float]]:
            words = tokenizer(list(prompts), padding=True, truncation=True, max_length=length, return_tensors="pt")
            pixels = clip_pixels(images, size).to(device, network.dtype)
            seen = embedding(network.get_image_features(pixel_values=pixels))
            said = embedding(network.get_text_features(**words.to(device)))
            return [{"pickscore": value} for value in (scale * cosines(said, seen)).tolist()]

        return score

    def network(self) -> Any:
        """The CLIP model in float32, on the CPU."""
        from transformers import CLIPModel

        if not Path(self.model).is_file():
            return from_folder(CLIPModel, self.model, dtype=torch.float32)
        network: Any = empty(vit_h)
        return load_exactly(network, read_state(self.model), self.model, skip=("position_ids",)).float()


def vit_h() -> torch.nn.Module:
    """CLIP ViT-H/14 as transformers builds it, for a checkpoint file that comes without its config."""
    from transformers import CLIPConfig, CLIPModel

    text: dict[str, Any] = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "projection_dim": 1024,
    }
    vision: dict[str, Any] = {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
        "hidden_act": "gelu",
        "projection_dim": 1024,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=1024))
