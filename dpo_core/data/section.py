"""What a user may say about the data."""

from typing import Literal

from pydantic import Field, model_validator

from dpo_core.section import Section


class DataSection(Section):
    """Which preference pairs to train on, and how an image becomes a training crop."""

    paths: list[str] = []
    """Parquet files, globs or folders with preference pairs, on a disk or at a URL (s3://, gs://, hf://, https://); or
    one folder that `palate prepare` filled."""
    resolution: int = Field(default=512, ge=8)
    """Side of the square training images, in pixels."""
    crop: Literal["center", "random"] = "center"
    """Where the square is cut from the resized image; the same place for both images of a pair."""
    flip: Literal["none", "pair", "independent"] = "none"
    """Mirror half of the pairs (pair), or half of the images (independent)."""
    rejected: Literal["given", "other", "blur", "grid", "noise"] = "given"
    """The rejected image: the one of the row, the chosen image of another pair, or the chosen image itself made worse
    (shrunk to a quarter and enlarged, two cells of a grid exchanged, noise added). Made ones have the chosen caption.
    Ties stay left out, since nobody chose."""
    captions: Literal["shared", "per_image"] = "shared"
    """One caption for both images (column caption), or one each (caption_0, caption_1)."""
    caption_dropout: float = Field(default=0.0, ge=0, le=1)
    """Share of pairs trained with the empty caption."""
    prompt_image: bool = False
    """Show the chosen image to the model as an image prompt."""
    prompt_image_dropout: float = Field(default=0.0, ge=0, le=1)
    """Share of pairs trained with the caption but without the image prompt."""
    joint_dropout: float = Field(default=0.0, ge=0, le=1)
    """Share of pairs trained with neither; the three shares exclude one another."""
    quality: bool = False
    """Read a patch quality map for each image (columns patch_quality_0 and patch_quality_1)."""
    lanes: int = Field(default=16, ge=1)
    """Parts an epoch is cut into and shared out; at least as many as workers, and a divisor of the global batch."""
    window: int = Field(default=2, ge=1)
    """Row groups whose rows are shuffled together; each lane keeps about this many in memory."""
    max_quarantined_share: float = Field(default=0.05, ge=0, le=1)
    """Stop when more than this share of the rows cannot be used."""
    min_side: int = Field(default=32, ge=1)
    """Smallest side of a usable image, in pixels."""
    max_megapixels: float = Field(default=16.0, gt=0)
    """Largest usable image, in millions of pixels; checked before decoding."""
    max_aspect: float = Field(default=4.0, ge=1)
    """Largest ratio of an image's long side to its short side."""

    @model_validator(mode="after")
    def _dropouts_fit(self) -> "DataSection":
        if self.caption_dropout + self.prompt_image_dropout + self.joint_dropout > 1:
            raise ValueError(
                f"caption_dropout ({self.caption_dropout:g}), prompt_image_dropout ({self.prompt_image_dropout:g}) and "
                f"joint_dropout ({self.joint_dropout:g}) exclude one another; together they must be at most 1"
            )
        if not self.prompt_image and (self.prompt_image_dropout or self.joint_dropout):
            raise ValueError("prompt_image_dropout and joint_dropout drop an image prompt; set prompt_image=true")
        return self

    @model_validator(mode="after")
    def _quality_maps_fit(self) -> "DataSection":
        if self.quality and (self.crop, self.flip, self.rejected) != ("center", "none", "given"):
            raise ValueError(
                f"quality maps belong to the centre crops of a row's own images, but crop={self.crop}, "
                f"flip={self.flip}, rejected={self.rejected}; use crop=center, flip=none and rejected=given"
            )
        return self

    def needs_images(self, *, flips: bool = False) -> str:
        """The settings that a latent cache, with mirrored crops or without, cannot serve, in words; empty when it can
        serve all."""
        servable: dict[str, tuple[object, ...]] = {
            "crop": ("center",),
            "flip": ("none", "pair", "independent") if flips else ("none",),
            "rejected": ("given", "other"),
            "prompt_image": (False,),
            "quality": (False,),
        }
        given = {name: getattr(self, name) for name in servable}
        return ", ".join(
            f"data.{name}={str(value).lower()}" for name, value in given.items() if value not in servable[name]
        )
