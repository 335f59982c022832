"""The scorers there are. Adding one: a file here, and its class in this union."""

from typing import Annotated

from pydantic import Field

from eval.scorers.aesthetic import Aesthetic
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

AnyScorer = Annotated[
    Shapes
    | PickScore
    | HPSv2
    | HPSv3
    | ImageReward
    | Aesthetic
    | CLIPScore
    | Dino
    | ClipI
    | ClipT
    | GenEval
    | VQAScore
    | Judge,
    Field(discriminator="kind"),
]
"""A scorer in a config, told apart by its ``kind``."""
