"""DINO: does the image show the very subject of its reference images? By self-supervised features."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from PIL import Image

from eval.scorers.base import DTYPES, Precision, ScoreFunction, Scorer, cropped_pixels, normalized
from eval.scorers.references import Remembered, mean_cosines
from eval.scorers.weights import empty, find_file, in_folder, load_exactly, read_state

ARCHITECTURE = "vit_small_patch16_224.dino"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Dino(Scorer):
    """Mean cosine with the reference images by DINO ViT-S/16 (DreamBooth, arXiv 2208.12242, section 4.1; the network of
    arXiv 2104.14294, as github.com/facebookresearch/dino loads it for ``dino_vits16``)."""

    kind: Literal["dino"] = "dino"
    weights: str = "timm/vit_small_patch16_224.dino"
    """A checkpoint file (timm's, or the original `dino_deitsmall16_pretrain.pth`), or a folder or hub id with
    `model.safetensors`."""
    dtype: Precision = "float32"
    """Precision of the network."""

    columns: ClassVar[dict[str, str]] = {"dino": "mean cosine with the reference images, about 0.4 to 0.9"}
    primary: ClassVar[str] = "dino"
    needs_references: ClassVar[bool] = True
    # timm's own default would resize to 248 pixels, which is not what published numbers were made with.
    preprocessing: ClassVar[str] = "shortest side 256 bicubic (Pillow), centre crop 224, ImageNet mean and std"
    scale: ClassVar[str] = "mean cosine"

    @property
    def variant_id(self) -> str:
        return "dino-vits16"

    def places(self) -> list[str | None]:
        return [in_folder(self.weights, "model.safetensors")]

    def load(self, device: str | torch.device = "cpu") -> ScoreFunction:
        """Raises ValueError if the weights are not there or are of another network."""
        file = find_file(self.weights, "model.safetensors")
        network = load_exactly(vit_small(), read_state(file), file)
        network, dtype = network.to(device, DTYPES[self.dtype]), DTYPES[self.dtype]

        def embed(images: Sequence[Image.Image]) -> torch.Tensor:
            return normalized(network(cropped_pixels(images, 256, 224, MEAN, STD).to(device, dtype)))

        remembered = Remembered(embed)

        @torch.inference_mode()
        def score(
            images: Sequence[Image.Image], prompts: Sequence[str], references: Sequence[Sequence[Image.Image]]
        ) -> list[dict[str, float]]:
            del prompts
            return [{"dino": value} for value in mean_cosines(images, references, embed, remembered)]

        return score


def vit_small() -> torch.nn.Module:
    """The network without weights; its output is the class token, ``[n, 384]``."""
    import timm

    return empty(lambda: timm.create_model(ARCHITECTURE, pretrained=False, num_classes=0))
