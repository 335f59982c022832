"""The base of every config section of this package (its own copy: eval does not import dpo_core)."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a config: unknown keys are refused, values cannot be changed afterwards.

    The string under a field is its documentation and its ``--help`` text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
