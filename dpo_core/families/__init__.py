"""Every model family there is; this union is the whole registry."""

from dpo_core.families.base import DTYPES, Family, LoadedFamily, Precision, weights_hash
from dpo_core.families.sd15 import SD15

AnyFamily = SD15
"""One file each; the field ``kind`` says which."""

__all__ = ["DTYPES", "SD15", "AnyFamily", "Family", "LoadedFamily", "Precision", "weights_hash"]
