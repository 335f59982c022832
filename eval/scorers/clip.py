"""CLIPScore: does the image show what the prompt says? Cosine of CLIP embeddings, by open_clip."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from PIL import Image

from eval.scorers.base import ScoreFunction, Scorer, rgb


class CLIPScore(Scorer):
    """100 times the cosine between image and prompt embedding (Hessel et al., arXiv 2104.08718, without its 2.5 and
    its floor at zero, so differences below zero stay visible). Numbers of different models are not comparable."""

    kind: Literal["clip"] = "clip"
    model: str = "ViT-L-14-quickgelu"
    """An open_clip architecture, `hf-hub:owner/name`, or `local-dir:folder` with config and weights."""
    weights: str | None = "openai"
    """A tag of open_clip or a checkpoint file; null for `hf-hub:` and `local-dir:`, which bring their own."""
    prefix: str = ""
    """Put before the prompt, e.g. `A photo depicts ` as in the paper."""

    columns: ClassVar[dict[str, str]] = {"clip": "100 x cosine of image and prompt embedding; photos about 20 to 40"}
    primary: ClassVar[str] = "clip"

    def load(self, device: str | torch.device = "cpu") -> ScoreFunction:
        """Raises ValueError if open_clip does not know the model, or would use the wrong activation for the weights."""
        import open_clip

        carried = self.model.startswith(("hf-hub:", "local-dir:"))
        if carried == (self.weights is not None):
            raise ValueError(
                f"clip scorer: model {self.model!r} with weights {self.weights!r}; allowed: an "
                "architecture with weights, or hf-hub:/local-dir: with weights null"
            )
        if self.weights == "openai" and not self.model.endswith("-quickgelu"):
            raise ValueError(
                f"clip scorer: OpenAI's weights need QuickGELU, {self.model!r} has another activation; "
                f"allowed: {self.model}-quickgelu"
            )
        try:
            network, _, transform = open_clip.create_model_and_transforms(self.model, self.weights, device=device)
            tokenizer = open_clip.get_tokenizer(self.model)
        except (RuntimeError, OSError) as error:
            raise ValueError(f"clip scorer: cannot load {self.model!r} with {self.weights!r}: {error}") from error
        network.eval()
        preprocess: Any = transform
        encode_image: Any = network.encode_image
        encode_text: Any = network.encode_text

        @torch.inference_mode()
        def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[dict[str, float]]:
            pixels = torch.stack([preprocess(rgb(image)) for image in images]).to(device)
            tokens = tokenizer([self.prefix + prompt for prompt in prompts]).to(device)
            seen = encode_image(pixels, normalize=True).float()
            said = encode_text(tokens, normalize=True).float()
            return [{"clip": value} for value in (100 * (seen * said).sum(-1)).tolist()]

        return score
