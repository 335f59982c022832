"""HPS v3: the Human Preference Score by a vision-language model, Qwen2-VL 7B with a reward head."""

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from PIL import Image

from eval.scorers.base import DTYPES, Precision, ScoreFunction, Scorer, rgb
from eval.scorers.weights import empty, find_file, in_folder, load_exactly, read_state

log = logging.getLogger(__name__)
PUBLISHED = "f6ee57479d4e9eee76b4"
"""How the sha256 of the instruction begins that the published weights were fitted to."""
REWARD_TOKEN = "<|Reward|>"
AREA, GRID = 256 * 28 * 28, 28
"""Pixels an image is brought to, and the multiple its sides are brought to."""
RENAMED = {"visual.": "body.visual.", "model.": "body.language_model.", "rm_head.": "head."}
"""The names of transformers 4.45, which the checkpoint was saved with, and ours."""


class HPSv3(Scorer):
    """Human Preference Score v3 (Ma et al., arXiv 2508.03789): the mean that the head predicts at the token <|Reward|>.

    Needs a GPU with 20 GB. Tested on random weights of its architecture only; no published score was reproduced.
    """

    kind: Literal["hpsv3"] = "hpsv3"
    weights: str = "MizzenAI/HPSv3"
    """A checkpoint file, or a folder or hub id with HPSv3.safetensors."""
    base: str = "Qwen/Qwen2-VL-7B-Instruct"
    """Folder or hub id with the config, the tokenizer and the image processor; its weights are not read."""
    instruction: str | None = None
    """A text file with what the model is asked, {text_prompt} and the reward token in it: an input that the weights
    were fitted to, which does not come with them. PyPI's package hpsv3 1.0.0 holds it (INSTRUCTION plus its ending)."""
    dtype: Precision = "bfloat16"
    """Precision of the model, as published; the head is float32."""

    columns: ClassVar[dict[str, str]] = {
        "hps": "predicted mean preference, about -2 to 12",
        "sigma": "second output of the head: how unsure it is, on its own scale",
    }
    primary: ClassVar[str] = "hps"
    preprocessing: ClassVar[str] = "Pillow bicubic to 256 x 28 x 28 pixels in multiples of 28, Qwen2-VL's patches"
    scale: ClassVar[str] = "head's first output"

    @property
    def variant_id(self) -> str:
        return "hpsv3"

    def places(self) -> list[str | None]:
        return [in_folder(self.weights, "HPSv3.safetensors")]

    def load(self, device: str | torch.device = "cpu") -> ScoreFunction:
        """Raises ValueError if instruction, checkpoint or base is not there or not of this network."""
        from transformers import AutoConfig, AutoProcessor

        wording = read_instruction(self.instruction)
        try:
            config = AutoConfig.from_pretrained(self.base)
            processor: Any = AutoProcessor.from_pretrained(self.base, padding_side="right")
        except (OSError, ValueError) as error:
            raise ValueError(f"hpsv3 scorer: cannot load config and processor of {self.base!r}: {error}") from error
        processor.tokenizer.add_special_tokens({"additional_special_tokens": [REWARD_TOKEN]})
        token = processor.tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
        file = find_file(self.weights, "HPSv3.safetensors")
        state = renamed(read_state(file))
        words = len(state.get("body.language_model.embed_tokens.weight", ()))
        if token >= words:
            raise ValueError(
                f"hpsv3 scorer: {str(file)!r} has embeddings of {words} words, but {REWARD_TOKEN} is {token}"
            )
        network: Any = load_exactly(build(config, words), state, file)
        network.body.to(device, DTYPES[self.dtype])
        network.head.to(device, torch.float32)

        @torch.inference_mode()
        def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[dict[str, float]]:
            talks = [talk(wording, prompt) for prompt in prompts]
            inputs = processor(
                text=processor.apply_chat_template(talks, tokenize=False, add_generation_prompt=True),
                images=[resized(image) for image in images],
                padding=True,
                return_tensors="pt",
            ).to(device)
            rewards = network(
                inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"], inputs["image_grid_thw"], token
            )
            return [{"hps": mean, "sigma": sigma} for mean, sigma in rewards.tolist()]

        return score


class Network(torch.nn.Module):
    """Qwen2-VL without its language head, and the reward head."""

    def __init__(self, config: Any) -> None:
        from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

        super().__init__()
        self.image_token = config.image_token_id
        self.body = Qwen2VLModel(config)
        self.head = torch.nn.Sequential(
            torch.nn.Linear(config.get_text_config().hidden_size, 1024),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.05),
            torch.nn.Linear(1024, 16),
            torch.nn.ReLU(),
            torch.nn.Linear(16, 2),
        )

    def forward(
        self, words: torch.Tensor, mask: torch.Tensor, patches: torch.Tensor, grid: torch.Tensor, token: int
    ) -> torch.Tensor:
        """Mean and sigma ``[n, 2]`` of words ``[n, length]``, padded on the right, with one ``token`` each."""
        told = self.body.get_input_embeddings()(words)
        seen = self.body.visual(patches.to(told.dtype), grid_thw=grid).pooler_output
        told = told.masked_scatter((words == self.image_token)[..., None].expand_as(told), seen.to(told.dtype))
        # Published scores come from plain positions 0, 1, 2, ...: the original hands over embeddings, from which its
        # library could not build the two-dimensional positions that Qwen2-VL has for images.
        places = torch.arange(words.shape[1], device=words.device).expand(3, len(words), -1)
        read = self.body.language_model(inputs_embeds=told, attention_mask=mask, position_ids=places).last_hidden_state
        return self.head(read[words == token].float())


def build(config: Any, vocabulary: int) -> Network:
    """The network without weights, its embeddings resized to ``vocabulary`` words."""
    config.get_text_config().vocab_size = vocabulary
    return empty(lambda: Network(config))


def renamed(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The published checkpoint's names as :class:`Network`'s; the language head is left out."""
    out = {}
    for name, tensor in state.items():
        old = next((prefix for prefix in RENAMED if name.startswith(prefix)), None)
        if name != "lm_head.weight":
            out[RENAMED[old] + name.removeprefix(old) if old else name] = tensor
    return out


def talk(wording: str, prompt: str) -> list[dict[str, Any]]:
    """What the model is asked about one image, as a chat."""
    content = [{"type": "image"}, {"type": "text", "text": wording.replace("{text_prompt}", prompt)}]
    return [{"role": "user", "content": content}]


def resized(image: Image.Image) -> Image.Image:
    """The image at about 256 x 28 x 28 pixels, both sides multiples of 28, its shape kept as well as that allows."""
    wide, high = image.size
    sides = [max(GRID, round(side / GRID) * GRID) for side in (wide, high)]
    area = sides[0] * sides[1]
    if area != AREA:
        step = math.floor if area > AREA else math.ceil
        factor = math.sqrt(AREA / (wide * high))
        sides = [max(GRID, step(side * factor / GRID) * GRID) for side in (wide, high)]
    return rgb(image).resize((sides[0], sides[1]), Image.Resampling.BICUBIC)


def read_instruction(file: str | None) -> str:
    """The text of an instruction file, checked for the two places that are filled in.

    A text other than the published one is taken, with a warning. Raises ValueError when there is none or it lacks one.
    """
    if file is None:
        raise ValueError(
            "hpsv3 scorer: instruction is not set; it names the text that the weights were fitted to, which PyPI's "
            "package hpsv3 1.0.0 holds"
        )
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise ValueError(f"hpsv3 scorer: instruction {file!r} cannot be read: {error}") from error
    text = data.decode("utf-8")
    for part in (REWARD_TOKEN, "{text_prompt}"):
        if text.count(part) != 1:
            raise ValueError(
                f"hpsv3 scorer: instruction {file!r} must hold {part} once, it is there {text.count(part)} times"
            )
    if not hashlib.sha256(data).hexdigest().startswith(PUBLISHED):
        log.warning("hpsv3: %s is not the published instruction; scores will not compare with published ones", file)
    return text
