"""Every model family there is; this union is the whole registry."""

from typing import Annotated

from pydantic import Field

from dpo_core.families.auraflow import AuraFlow
from dpo_core.families.base import DTYPES, Family, LoadedFamily, Precision, weights_hash
from dpo_core.families.flux import Flux
from dpo_core.families.sd3 import SD3
from dpo_core.families.sd15 import SD15
from dpo_core.families.sdxl import SDXL

AnyFamily = Annotated[SD15 | SDXL | SD3 | Flux | AuraFlow, Field(discriminator="kind")]
"""One file each; the field ``kind`` says which."""

__all__ = [
    "DTYPES",
    "SD3",
    "SD15",
    "SDXL",
    "AnyFamily",
    "AuraFlow",
    "Family",
    "Flux",
    "LoadedFamily",
    "Precision",
    "weights_hash",
]
