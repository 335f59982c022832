"""The embedded model: a tiny Stable Diffusion pipeline that ships with the package."""

from pathlib import Path

EMBEDDED = "embedded"
"""The name by which a config asks for the model that ships with the package."""


def resolve_model(model: str) -> str:
    """The diffusers folder or hub id behind ``model``: ``embedded`` is the pipeline shipped beside this file."""
    return str(Path(__file__).parent / "model") if model == EMBEDDED else model
