import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from eval.scorers.base import clip_pixels, rgb


def test_clip_pixels_equal_the_image_processor_of_transformers():
    noise = np.random.default_rng(0).integers(0, 256, (300, 420, 3), dtype=np.uint8)
    images = [Image.fromarray(noise), Image.fromarray(noise).crop((0, 0, 240, 240)), Image.new("RGB", (64, 64), "red")]
    expected = CLIPImageProcessorPil()(images, return_tensors="pt")["pixel_values"]
    assert torch.allclose(clip_pixels(images), expected, atol=1e-5)


def test_transparent_parts_are_white():
    assert rgb(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert rgb(Image.new("L", (1, 1), 7)).getpixel((0, 0)) == (7, 7, 7)
