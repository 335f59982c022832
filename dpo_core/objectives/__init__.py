"""Every objective there is; this union is the whole registry."""

from typing import Annotated

from pydantic import Field

from dpo_core.objectives.base import LossOutput, Objective, PairErrors
from dpo_core.objectives.dpo import DPO
from dpo_core.objectives.sft import SFT

AnyObjective = Annotated[DPO | SFT, Field(discriminator="kind")]

__all__ = ["DPO", "SFT", "AnyObjective", "LossOutput", "Objective", "PairErrors"]
