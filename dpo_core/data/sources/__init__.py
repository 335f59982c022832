"""Every source of preference data there is; this union is the whole registry."""

from typing import Annotated

from pydantic import Field

from dpo_core.data.sources.arena import Arena
from dpo_core.data.sources.base import LeftOut, Pointer, Record, Source
from dpo_core.data.sources.chosen_rejected import ChosenRejected
from dpo_core.data.sources.hpdv2 import HPDv2
from dpo_core.data.sources.hpdv3 import HPDv3
from dpo_core.data.sources.image_folder import ImageFolder
from dpo_core.data.sources.open_image_preferences import OpenImagePreferences
from dpo_core.data.sources.patchdpo import PatchDPO
from dpo_core.data.sources.pick_double_caption import PickDoubleCaption
from dpo_core.data.sources.pickapic import PickAPic
from dpo_core.data.sources.rankings import Rankings
from dpo_core.data.sources.table import Table

AnySource = Annotated[
    PickAPic
    | PickDoubleCaption
    | OpenImagePreferences
    | HPDv2
    | HPDv3
    | Rankings
    | ImageFolder
    | ChosenRejected
    | PatchDPO
    | Arena
    | Table,
    Field(discriminator="kind"),
]

__all__ = [
    "AnySource",
    "Arena",
    "ChosenRejected",
    "HPDv2",
    "HPDv3",
    "ImageFolder",
    "LeftOut",
    "OpenImagePreferences",
    "PatchDPO",
    "PickAPic",
    "PickDoubleCaption",
    "Pointer",
    "Rankings",
    "Record",
    "Source",
    "Table",
]
