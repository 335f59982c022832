"""The ways to make pairs. Adding one: a file here, and its class in this union."""

from typing import Annotated

from pydantic import Field

from ray_jobs.pairing.downgrade import Downgrade
from ray_jobs.pairing.other_caption import OtherCaption
from ray_jobs.pairing.samples import Samples
from ray_jobs.pairing.world import World

AnyRecipe = Annotated[World | Samples | Downgrade | OtherCaption, Field(discriminator="kind")]
"""A recipe in a config, told apart by its ``kind``."""
