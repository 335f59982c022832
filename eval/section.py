"""The bases of this package's config sections (its own copy: eval does not import dpo_core) and of what it reports."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a config: unknown keys are refused, values cannot be changed afterwards.

    The string under a field is its documentation and its ``--help`` text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Record:
    """A base of frozen dataclasses whose fields stand in report.json: the string under a field is its description in
    the JSON schema."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(use_attribute_docstrings=True)
