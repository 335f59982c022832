"""What a user may say about captions: who describes images, and who perturbs captions."""

from typing import Annotated, Literal

from pydantic import Field

from dpo_core.section import Section
from ray_jobs.captioning.endpoint import Endpoint
from ray_jobs.captioning.local import LocalModel
from ray_jobs.captioning.texts import DESCRIBE, PERTURB


class DescribeByEndpoint(Endpoint):
    """A vision-language model behind an OpenAI-compatible address."""

    kind: Literal["endpoint"] = "endpoint"
    instruction: str = DESCRIBE
    """What is asked with each image; {prompt} becomes the pair's prompt. Without it, images are described as they are,
    which DCPO found to be worse."""


class DescribeLocally(LocalModel):
    """An image-text-to-text model of transformers (LLaVA-NeXT and the like) in the worker."""

    kind: Literal["local"] = "local"
    instruction: str = DESCRIBE
    """What is asked with each image; {prompt} becomes the pair's prompt."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest caption, in tokens."""


class GivenCaptions(Section):
    """Captions that the source already has: of an earlier `palate caption`, or of another set."""

    kind: Literal["given"] = "given"
    columns: tuple[str, str] = ("generated_0", "generated_1")
    """The columns that describe image 0 and image 1."""


class PerturbByEndpoint(Endpoint):
    """An instruction model behind an OpenAI-compatible address."""

    kind: Literal["endpoint"] = "endpoint"
    instruction: str = PERTURB
    """What is asked; {caption} becomes the caption, {change} what the strength asks for."""


class PerturbByDipper(LocalModel):
    """The DIPPER paraphraser (arXiv 2303.13408) in the worker, as DCPO uses it."""

    kind: Literal["dipper"] = "dipper"
    model: str = "kalpeshk2011/dipper-paraphraser-xxl"
    """A folder or a hub id: a T5 of 11 billion parameters, 22 GB in bfloat16."""
    revision: str | None = "refs/pr/2"
    """Branch, tag or commit of a hub id; null for a folder. The main branch holds no safetensors."""
    tokenizer: str = "google/t5-v1_1-xxl"
    """A folder or a hub id."""
    top_p: float = Field(default=0.75, gt=0, le=1)
    """Words are drawn from the likeliest that have this probability together."""
    max_length: int = Field(default=256, ge=1)
    """Longest paraphrase of three sentences, in tokens."""
    seed: int = 0
    """Seed of the draws."""


Describer = Annotated[DescribeByEndpoint | DescribeLocally | GivenCaptions, Field(discriminator="kind")]
Perturber = Annotated[PerturbByEndpoint | PerturbByDipper, Field(discriminator="kind")]
Variant = Literal["c", "p", "h"]
