"""Do the scorers of this machine give the numbers that were published? Nothing is downloaded to find out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from eval.scorers.aesthetic import Aesthetic, load_head, rate
from eval.scorers.base import Scorer, rgb
from eval.scorers.clip import CLIPScore
from eval.scorers.clip_i import ClipI
from eval.scorers.clip_t import ClipT
from eval.scorers.dino import Dino
from eval.scorers.geneval import GenEval
from eval.scorers.hpsv2 import HPSv2
from eval.scorers.hpsv3 import HPSv3
from eval.scorers.imagereward import ImageReward
from eval.scorers.judge import Judge
from eval.scorers.pickscore import PickScore
from eval.scorers.shapes import Shapes
from eval.scorers.vqascore import VQAScore
from eval.scorers.weights import weights_name

State = Literal["reproduced", "differs", "not checked"]

OCEAN = "a painting of an ocean with clouds and birds, day time, low depth field effect"
REWARDS = {"1.webp": 0.5811622738, "2.webp": 0.2745276093, "3.webp": -1.413181901, "4.webp": -2.0295696258}
"""README of github.com/THUDM/ImageReward @ c1392c6d, for the pictures in its assets/images."""
LABELS = {"a diagram": 0.9927937, "a dog": 0.00421068, "a cat": 0.00299572}
"""README of github.com/openai/CLIP @ d05afc43: what ViT-B/32 thinks CLIP.png shows, as shares of exp(100 x cosine)."""
RATINGS = {"first axis": 4.545052528, "zero": 5.236645699, "all equal": 4.883284569}
"""What the published aesthetic head gives for three embeddings, computed with its own code."""
UNPUBLISHED: dict[type[Scorer], str] = {
    PickScore: "its authors published accuracies on a data set, no score of a public image",
    HPSv2: "its authors published means over 3,200 generated images per model, no score of a public image",
    HPSv3: "its authors published means over benchmarks, no score of a public image",
    Dino: "only means over DreamBench's generated images are published",
    GenEval: "another detector than the published one, so its numbers are its own",
    Shapes: "it was made for this project; its tests draw what it judges",
}


@dataclass(frozen=True)
class Verdict:
    """What is known of one scorer on this machine."""

    scorer: str
    state: State
    why: str


def standard_scorers() -> list[Scorer]:
    """Every scorer that needs no endpoint, with its default weights."""
    clips: list[Scorer] = [CLIPScore(variant=variant) for variant in ("l14", "h14", "hessel")]
    judges: list[Scorer] = [Aesthetic(), ImageReward(), PickScore(), HPSv2(version="v2.0"), HPSv2(), HPSv3()]
    return [*judges, *clips, Dino(), ClipI(), ClipT(), GenEval(), Shapes()]


def verify(scorers: Sequence[Scorer], probes: str | Path | None = None, device: str = "cpu") -> list[Verdict]:
    """One verdict for each scorer.

    ``probes`` is a folder with what published numbers were computed from: ImageReward's ``1.webp`` to ``4.webp`` and
    OpenAI's ``CLIP.png``, from the repositories named above. The hub is switched off meanwhile: only what is on this
    machine counts.
    """
    with offline():
        return [_verdict(scorer, Path(probes) if probes else None, device) for scorer in scorers]


def _verdict(scorer: Scorer, probes: Path | None, device: str) -> Verdict:
    if isinstance(scorer, VQAScore | Judge):
        return Verdict(scorer.label, "not checked", "asks an endpoint, which can change at any time and costs")
    try:
        check = _check_of(scorer)
        absent = [place for place in scorer.places() if place and weights_name(place).endswith("@unknown")]
        if absent and check is not head_ratings:
            raise ValueError(f"its weights are not on this machine: {', '.join(absent)}")
        if check is None:
            scorer.load(device)
            reason = UNPUBLISHED.get(type(scorer), "no score of a public image is published for these weights")
            return Verdict(scorer.label, "not checked", f"it loads, but {reason}")
        difference, within, what = check(scorer, probes, device)
    except ValueError as error:
        first = str(error).splitlines()[0]
        return Verdict(scorer.label, "not checked", first if len(first) < 160 else f"{first[:157]}...")
    state: State = "reproduced" if difference <= within else "differs"
    return Verdict(scorer.label, state, f"{what}: largest difference {difference:.2g}, allowed {within:g}")


Check = Callable[[Any, Path | None, str], tuple[float, float, str]]
"""(scorer, probes, device) -> largest difference, what is allowed, what was compared."""


def _check_of(scorer: Scorer) -> Check | None:
    if isinstance(scorer, Aesthetic):
        return head_ratings
    if isinstance(scorer, ImageReward):
        return rewards
    if isinstance(scorer, ClipT | ClipI) and (scorer.model, scorer.weights) == ("ViT-B-32-quickgelu", "openai"):
        return labels
    if isinstance(scorer, CLIPScore) and scorer.chosen() == ("ViT-B-32-quickgelu", "openai"):
        return labels
    return None


def head_ratings(scorer: Aesthetic, probes: Path | None, device: str) -> tuple[float, float, str]:
    """The head alone: no score of a public image is published that would reach the tower too."""
    del probes, device
    weight, bias = load_head(scorer.head)
    embeddings = torch.zeros(3, len(weight))
    embeddings[0, 0], embeddings[2] = 1.0, 1.0
    wanted = torch.tensor(list(RATINGS.values()))
    return (
        float((rate(embeddings, weight, bias) - wanted).abs().max()),
        1e-5,
        "its head on three embeddings (no score that reaches the tower is published)",
    )


def rewards(scorer: ImageReward, probes: Path | None, device: str) -> tuple[float, float, str]:
    """The four rewards of the authors' README, which says they differ slightly between devices."""
    score, images = scorer.load(device), _images(probes, list(REWARDS))
    got = np.array([row["reward"] for row in score(images, [OCEAN] * len(images))])
    within = 0.01 if scorer.dtype == "float32" else 0.05
    return float(abs(got - list(REWARDS.values())).max()), within, "rewards of the authors' four pictures"


def labels(scorer: ClipT | ClipI | CLIPScore, probes: Path | None, device: str) -> tuple[float, float, str]:
    """The shares of the authors' README, compared as logarithms: they were computed in half precision."""
    model, weights = scorer.chosen() if isinstance(scorer, CLIPScore) else (scorer.model, scorer.weights)
    score = ClipT(model=model, weights=weights, dtype=scorer.dtype).load(device)
    images = _images(probes, ["CLIP.png"] * len(LABELS))
    cosines = torch.tensor([row["clip_t"] for row in score(images, list(LABELS))], dtype=torch.float64)
    shares = torch.log_softmax(100 * cosines, dim=0)
    wanted = torch.tensor(list(LABELS.values()), dtype=torch.float64).log()
    return float((shares - wanted).abs().max()), 0.1, "logarithms of the authors' shares for CLIP.png"


def _images(probes: Path | None, names: Sequence[str]) -> list[Image.Image]:
    wanted = ", ".join(dict.fromkeys(names))
    if probes is None:
        raise ValueError(f"its weights load; to compare, give a folder `probes` with {wanted}")
    missing = [name for name in names if not (probes / name).is_file()]
    if missing:
        raise ValueError(f"its weights load; to compare, {probes} needs {missing[0]}")
    images = []
    for name in names:
        with Image.open(probes / name) as image:
            images.append(rgb(image))
    return images


@contextmanager
def offline() -> Iterator[None]:
    """Switches the model hub off for this process, whatever the environment says."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
