"""GenEval with a maintained detector: are the asked objects there, so many, so coloured, so placed?"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from PIL import Image

from eval.scorers.base import ScoreFunction, Scorer, rgb
from eval.scorers.geneval_rules import COLOURS, Thing, class_names, judge, requirements
from eval.scorers.towers import Towers, load_towers, place_of
from eval.scorers.weights import from_folder

GREY = "#999999"
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")


class GenEval(Scorer):
    """GenEval's rules (Ghosh et al., arXiv 2310.11513) on the objects that Mask2Former finds and the colours that CLIP
    sees. **Not the published GenEval**: its detector needs libraries that can no longer be installed, and the one here
    has other weights. Compare models by it, not with published numbers. Wants the prompt set `geneval`.

    The published overall score is the mean over the six tasks, which differ in size; a report's groups show each.
    """

    kind: Literal["geneval"] = "geneval"
    detector: str = "facebook/mask2former-swin-small-coco-instance"
    """Folder or hub id of a Mask2Former for COCO's instances, transformers format."""
    clip: str = "ViT-L-14-quickgelu"
    """The CLIP that tells colours: an open_clip architecture, `hf-hub:owner/name`, or `local-dir:folder`."""
    clip_weights: str | None = "openai"
    """A tag of open_clip or a checkpoint file; null for `hf-hub:` and `local-dir:`."""

    columns: ClassVar[dict[str, str]] = {"correct": "1 if the image is as its prompt asks, else 0"}
    primary: ClassVar[str] = "correct"
    preprocessing: ClassVar[str] = "the detector's own; colours: object on grey #999, cut out, CLIP's own"
    scale: ClassVar[str] = "0 or 1"
    caveat: ClassVar[str] = (
        "not the published detector, so models can be compared by it, but not with published GenEval"
    )

    @property
    def variant_id(self) -> str:
        return "geneval-hf (not canonical)"

    def places(self) -> list[str | None]:
        return [self.detector, place_of(self.clip, self.clip_weights)]

    def tags(self, prompt: str) -> dict[str, str]:
        """The prompt's task, one of six."""
        return {"task": asked_of(prompt)["tag"]}

    def load(self, device: str | torch.device = "cpu") -> ScoreFunction:
        """Raises ValueError if a model is not there, or a prompt is not one of GenEval's."""
        from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessorPil

        network = from_folder(Mask2FormerForUniversalSegmentation, self.detector, dtype=torch.float32).to(device)
        try:
            processor: Any = Mask2FormerImageProcessorPil.from_pretrained(self.detector)
        except (OSError, ValueError) as error:
            raise ValueError(f"geneval scorer: no image processor in {self.detector!r}: {error}") from error
        names = class_names(network.config.id2label)
        towers = load_towers(self.clip, self.clip_weights, device, "float32", scorer=self.kind)
        colourist = Colourist(towers)

        @torch.inference_mode()
        def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[dict[str, float]]:
            rows = []
            for image, prompt in zip(images, prompts, strict=True):
                asked, picture = asked_of(prompt), rgb(image)
                # One at a time: a batch would be padded to its largest image, and detections would depend on it.
                inputs = processor(picture, return_tensors="pt").to(device)
                found = things(network(**inputs), picture.size, names)
                right = judge(found, asked, lambda some, name, of=picture: colourist(of, some, name))
                rows.append({"correct": float(right)})
            return rows

        return score


class Colourist:
    """Names colours of objects by CLIP, zero-shot, from three sentences for each colour."""

    def __init__(self, towers: Towers) -> None:
        self.towers = towers
        self.known: dict[str, torch.Tensor] = {}

    def __call__(self, image: Image.Image, some: Sequence[Thing], name: str) -> list[str]:
        """The colour of each of the objects, which GenEval calls ``name``."""
        if name not in self.known:
            lines = [text.format(colour=colour, name=name) for colour in COLOURS for text in TEMPLATES]
            means = self.towers.read(lines).unflatten(0, (len(COLOURS), len(TEMPLATES))).mean(1)
            self.known[name] = torch.nn.functional.normalize(means, dim=-1)
        seen = self.towers.see([cut_out(image, thing) for thing in some])
        return [COLOURS[i] for i in (seen @ self.known[name].T).argmax(-1).tolist()]


def cut_out(image: Image.Image, thing: Thing) -> Image.Image:
    """The object alone, on grey, cut to its box."""
    if thing.mask is not None:
        shape = Image.fromarray(thing.mask.cpu().numpy())
        image = Image.composite(image, Image.new("RGB", image.size, GREY), shape)
    left, top, right, bottom = thing.box
    return image.crop((round(left), round(top), max(round(right), round(left) + 1), max(round(bottom), round(top) + 1)))


def things(output: Any, size: tuple[int, int], names: dict[int, str]) -> list[Thing]:
    """The instances of one image, as Mask2Former's authors read them off: the surest pairs of query and class, as many
    as there are queries; confidence = class probability x mean mask probability inside the mask; its bounding box.

    transformers' own reading is on a grid of 384 x 384 and gives no boxes. ``size`` is (width, height)."""
    probability = output.class_queries_logits[0].float().softmax(-1)[:, :-1]
    best, places = probability.flatten().topk(len(probability))
    masks = torch.nn.functional.interpolate(
        output.masks_queries_logits.float(), (size[1], size[0]), mode="bilinear", align_corners=False
    )[0]
    found = []
    for confidence, place in zip(best.tolist(), places.tolist(), strict=True):
        query, label = divmod(place, probability.shape[1])
        inside = masks[query] > 0
        if not inside.any():
            continue
        sure = float(masks[query].sigmoid()[inside].mean())
        rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
        box = (float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1)
        found.append(Thing(names[label], confidence * sure, box, inside))
    return found


def asked_of(prompt: str) -> dict[str, Any]:
    """What the prompt asks for. Raises ValueError if it is not GenEval's."""
    if prompt not in requirements():
        raise ValueError(f"geneval scorer: {prompt!r} is not one of its 553 prompts; use the prompt set geneval")
    return requirements()[prompt]
