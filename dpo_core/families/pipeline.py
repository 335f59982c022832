"""Pipelines and parts of them, from diffusers folders and hub ids; a ValueError names the field that was wrong.

diffusers is imported where it loads something: it takes seconds, which help and dry runs need not wait for.
"""

import inspect
from pathlib import Path
from typing import Any

import torch

from dpo_core.families.base import Family, Parts

Dtype = torch.dtype | dict[str, torch.dtype]
"""One for all parts, or one for some and the ``default`` for the others."""


def load_pipeline(
    pipeline_type: str, config: Family, denoiser: str, dtype: Dtype, without: tuple[str, ...] = (), **settings: Any
) -> Any:
    """The pipeline of ``config.model``, with ``config.denoiser`` and ``config.vae`` in place, but none of ``without``.

    ``pipeline_type`` is its class in diffusers, ``denoiser`` what it calls its denoiser: unet or transformer. Parts
    that the model was saved without are None; diffusers alone would refuse them. Raises ValueError when there is no
    such pipeline, before any weights are read if it has the denoiser of another family.
    """
    import diffusers

    index = read_index(config)
    kind: Any = getattr(diffusers, pipeline_type)
    needed: str = inspect.signature(kind.__init__).parameters[denoiser].annotation.__name__
    if (found := index.get(denoiser, [None, None])[1]) != needed:
        raise wrong_model(config, f"cannot be loaded as a {pipeline_type}: its {denoiser} is {found}, not {needed}")
    missing = [name for name, entry in index.items() if entry == [None, None]]
    parts: dict[str, Any] = dict.fromkeys([*without, *missing])
    if config.denoiser is not None and denoiser not in without:
        parts[denoiser] = load_part("denoiser", denoiser, config.denoiser, dtype)
        if (other := type(parts[denoiser]).__name__) != needed:
            raise ValueError(f"family.denoiser: {config.denoiser!r} is a {other}, but a {pipeline_type} has a {needed}")
    if config.vae is not None and "vae" not in without:
        parts["vae"] = load_part("vae", "vae", config.vae, dtype)
    try:
        return kind.from_pretrained(
            config.source,
            revision=config.revision,
            variant=config.variant,
            dtype=dtype,
            use_safetensors=True,
            **settings,
            **parts,
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise wrong_model(config, f"cannot be loaded as a {pipeline_type}: {error}") from error


def left_out(config: Family, denoiser: str, parts: Parts) -> tuple[str, ...]:
    """The parts of the pipeline of ``config.model`` that are not among ``parts``. Raises ValueError as `read_index`."""
    if parts == "no_text":
        return tuple(name for name in read_index(config) if name.startswith("text_encoder"))
    return (denoiser, "vae") if parts == "text" else ()


def read_index(config: Family) -> dict[str, Any]:
    """``model_index.json`` of ``config.model``: [library, class] of each part. Raises ValueError when there is none."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    quiet_libraries()
    if Path(config.source).is_absolute() and not Path(config.source).exists():
        raise wrong_model(config, "cannot be loaded: there is no such folder")
    try:
        index: Any = DiffusionPipeline.load_config(config.source, revision=config.revision)
    except (OSError, ValueError) as error:
        raise wrong_model(config, f"cannot be loaded: {error}") from error
    return dict(index)


def quiet_libraries() -> None:
    """Keep progress bars and advice of the libraries out of the output; their errors are raised anyway."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
        library.set_verbosity_error()


def wrong_model(config: Family, problem: str) -> ValueError:
    """What is said about a ``family.model`` that cannot be used."""
    problem = " ".join(problem.split()).rstrip(".")
    return ValueError(
        f"family.model: {config.model!r} {problem}. Allowed: a diffusers folder with safetensors weights, a hub id, or "
        "'embedded' (for sd15)."
    )


def load_part(field: str, name: str, source: str, dtype: Dtype) -> Any:
    """One network from a folder or hub id of its own, or from a pipeline's; ValueError when there is none."""
    from diffusers.models.auto_model import AutoModel

    wanted = dtype if isinstance(dtype, torch.dtype) else dtype.get(name, dtype["default"])
    problem = ""
    quiet_libraries()
    if Path(source).is_absolute() and not Path(source).exists():
        raise ValueError(f"family.{field}: {source!r} cannot be loaded: there is no such folder")
    for place in ({"subfolder": name}, {}):
        try:
            return AutoModel.from_pretrained(source, dtype=wanted, use_safetensors=True, **place)
        except (OSError, ValueError) as error:
            problem = problem or str(error)
    raise ValueError(f"family.{field}: {source!r} cannot be loaded: {' '.join(problem.split())}")
