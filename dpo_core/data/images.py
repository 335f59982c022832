"""Bytes to pixels: what a stored image is, whether it may be decoded, and how it becomes a training crop."""

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch.nn.functional import interpolate
from torchcodec.decoders import decode_jpeg

from dpo_core.data.quarantine import Reason, RowRejected

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What is refused from the header alone: sides in pixels, aspect = long side / short side."""

    min_side: int = 32
    max_pixels: int = 16_000_000
    max_aspect: float = 4.0


def decode(data: bytes | None, limits: ImageLimits) -> NDArray[np.uint8]:
    """The upright RGB image in ``data``, ``[height, width, 3]``: frame 0 of an animation, transparency over white,
    colour profiles ignored.

    The format is detected by content. Raises RowRejected; a warning of the decoder counts as a failure.
    """
    if data is None:
        raise RowRejected(Reason.IMAGE_NULL)
    if not data:
        raise RowRejected(Reason.IMAGE_EMPTY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = _open(data)
        _check_size(image.size, limits)
        try:
            if _is_plain_jpeg(image) and (pixels := _turbo(data, image.size)) is not None:
                return pixels
            image.load()
            return np.array(_to_rgb(ImageOps.exif_transpose(image)))
        except RowRejected:
            raise
        except (
            Exception
        ) as error:  # decoders raise OSError, SyntaxError, ValueError, zlib.error, struct.error, warnings, ...
            reason = Reason.IMAGE_TRUNCATED if "truncated" in str(error).lower() else Reason.IMAGE_CORRUPT
            raise RowRejected(reason, str(error)) from error


def header_size(data: bytes, limits: ImageLimits) -> tuple[int, int]:
    """(height, width) from the header alone, whatever the rest of the image holds. Raises RowRejected as `decode`."""
    if not data:
        raise RowRejected(Reason.IMAGE_EMPTY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        width, height = _open(data).size
    _check_size((width, height), limits)
    return height, width


def training_crop(image: NDArray[np.uint8], resolution: int, *, x: float, y: float, flip: bool) -> NDArray[np.uint8]:
    """Resize the shortest side to ``resolution`` (antialiased bicubic), cut a square, mirror it if asked.

    ``x`` and ``y`` in [0, 1] place the crop: 0 left or top, 0.5 centre. ``image`` is ``[height, width, 3]``; returns
    ``[resolution, resolution, 3]``, which may be a view of it.
    """
    size, left, top = _placement(size_of(image), resolution, x, y)
    if size != size_of(image):
        image = _resize(image, size)
    pixels = image[top : top + resolution, left : left + resolution]
    return pixels[:, ::-1] if flip else pixels


def size_of(image: NDArray[np.uint8]) -> tuple[int, int]:
    """Width and height."""
    return image.shape[1], image.shape[0]


def crop_geometry(
    size: tuple[int, int], resolution: int, *, x: float, y: float, flip: bool
) -> tuple[int, int, int, int, int, int]:
    """What `training_crop` did to an image of ``size`` (width, height), as SDXL is conditioned on it.

    Original height and width, top and left of the crop in the resized image (as mirrored, if it was), height and width
    of the crop (arXiv 2307.01952, section 2.2).
    """
    resized, left, top = _placement(size, resolution, x, y)
    if flip:
        left = resized[0] - resolution - left
    return size[1], size[0], top, left, resolution, resolution


def _placement(size: tuple[int, int], resolution: int, x: float, y: float) -> tuple[tuple[int, int], int, int]:
    """Size after resizing (width, height), left and top of the crop."""
    width, height = size
    short = min(width, height)
    resized = (max(resolution, round(width * resolution / short)), max(resolution, round(height * resolution / short)))
    return resized, round(x * (resized[0] - resolution)), round(y * (resized[1] - resolution))


def _resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Antialiased bicubic, to width and height: Pillow's filter, at most two grey levels from its result."""
    height, width, channels = image.shape
    # With an explicit first dimension, or torch does not see that the channels are last, and takes the slow way.
    whole = torch.from_numpy(np.ascontiguousarray(image)).view(1, height, width, channels).permute(0, 3, 1, 2)
    resized = interpolate(whole, size=size[::-1], mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RowRejected(Reason.IMAGE_TOO_LARGE, str(error)) from error
    except UnidentifiedImageError as error:
        raise RowRejected(Reason.IMAGE_UNDECODABLE, f"starts with {data[:16]!r}") from error
    except Exception as error:  # a header can break a decoder in as many ways as a body can
        raise RowRejected(Reason.IMAGE_CORRUPT, str(error)) from error


def _is_plain_jpeg(image: Image.Image) -> bool:
    """Whether an opened image is a grey or RGB JPEG that stands upright; its EXIF data is read here, and may warn."""
    plain = image.format == "JPEG" and image.mode in ("RGB", "L")
    return plain and image.getexif().get(ExifTags.Base.Orientation, 1) == 1


def _turbo(data: bytes, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """The bits that Pillow would decode, in less time. None where Pillow must say what is wrong with the image."""
    try:
        decoded: Any = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode="RGB")
    except RuntimeError:
        return None
    pixels = decoded.permute(1, 2, 0).numpy()
    return pixels if size_of(pixels) == size else None


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise RowRejected(Reason.IMAGE_TOO_LARGE, f"{width}x{height}, at most {limits.max_pixels} pixels")
    if max(size) > limits.max_aspect * min(size):
        raise RowRejected(Reason.IMAGE_ASPECT_EXTREME, f"{width}x{height}, at most {limits.max_aspect:g}:1")
    if min(size) < limits.min_side:
        raise RowRejected(Reason.IMAGE_TOO_SMALL, f"{width}x{height}, at least {limits.min_side} per side")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # I;16 and its byte orders, or I holding 16 bits: convert() would clip, not scale
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise RowRejected(Reason.IMAGE_UNDECODABLE, f"integer pixels from {wide.min()} to {wide.max()}")
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise RowRejected(Reason.IMAGE_UNDECODABLE, "floating point pixels have no fixed range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")
