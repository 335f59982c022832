"""Every objective there is; this union is the whole registry."""

from typing import Annotated

from pydantic import Field

from dpo_core.objectives.base import LossOutput, Objective, PairErrors
from dpo_core.objectives.cdpo import CDPO
from dpo_core.objectives.dcpo import DCPO
from dpo_core.objectives.dmpo import DMPO
from dpo_core.objectives.dpo import DPO
from dpo_core.objectives.dspo import DSPO
from dpo_core.objectives.hinge import Hinge
from dpo_core.objectives.ipo import IPO
from dpo_core.objectives.kto import KTO
from dpo_core.objectives.linear_dpo import LinearDPO
from dpo_core.objectives.mapo import MaPO
from dpo_core.objectives.npo import NPO
from dpo_core.objectives.orpo import ORPO
from dpo_core.objectives.patchdpo import PatchDPO
from dpo_core.objectives.robust import RobustDPO
from dpo_core.objectives.sft import SFT
from dpo_core.objectives.simpo import SimPO
from dpo_core.objectives.sudo import SUDO

AnyObjective = Annotated[
    DPO
    | CDPO
    | RobustDPO
    | IPO
    | Hinge
    | KTO
    | DSPO
    | DMPO
    | LinearDPO
    | NPO
    | MaPO
    | ORPO
    | SimPO
    | DCPO
    | SUDO
    | PatchDPO
    | SFT,
    Field(discriminator="kind"),
]

__all__ = [
    "CDPO",
    "DCPO",
    "DMPO",
    "DPO",
    "DSPO",
    "IPO",
    "KTO",
    "NPO",
    "ORPO",
    "SFT",
    "SUDO",
    "AnyObjective",
    "Hinge",
    "LinearDPO",
    "LossOutput",
    "MaPO",
    "Objective",
    "PairErrors",
    "PatchDPO",
    "RobustDPO",
    "SimPO",
]
