"""The scorers there are. Adding one: a file here, and its class in this union."""

from typing import Annotated

from pydantic import Field

from eval.scorers.aesthetic import Aesthetic
from eval.scorers.clip import CLIPScore
from eval.scorers.shapes import Shapes

AnyScorer = Annotated[Shapes | CLIPScore | Aesthetic, Field(discriminator="kind")]
"""A scorer in a config, told apart by its ``kind``."""
