import io
import json
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dpo_core.data import images, schema
from dpo_core.data.images import ImageLimits, crop_geometry, decode, size_of, training_crop
from dpo_core.data.quarantine import Reason, RowRejected

ASSETS = Path(__file__).parents[2] / "assets"
LIMITS = ImageLimits()
HOSTILE = json.loads((ASSETS / "hostile.json").read_text())["hostile.parquet"]


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(color=(10, 20, 200), size=(64, 48)) -> Image.Image:
    return Image.new("RGB", size, color)


def header_only_png(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 1000) + b"IDAT"


def reason_for(data: bytes | None, limits: ImageLimits = LIMITS) -> Reason:
    with pytest.raises(RowRejected) as rejected:
        decode(data, limits)
    return rejected.value.reason


@pytest.mark.parametrize("case", HOSTILE, ids=[f"{case['row']}_{case['kind']}" for case in HOSTILE])
def test_every_hostile_image_is_decoded_or_refused_as_expected(case):
    row = pq.read_table(ASSETS / "hostile.parquet", columns=list(schema.IMAGES)).slice(case["row"], 1).to_pylist()[0]
    expected = case["reason"] if (case["reason"] or "").startswith("image_") else None
    found = None
    for name in schema.IMAGES:
        try:
            image = decode(row[name], LIMITS)
            assert image.shape[2:] == (3,)
            assert image.dtype == np.uint8
        except RowRejected as rejected:
            found = str(rejected.reason)
    assert found == expected


def test_an_image_stored_on_its_side_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(plain(size=(48, 64)), "JPEG", exif=exif)
    assert size_of(decode(data, LIMITS)) == (64, 48)


def test_transparent_pixels_show_the_white_background():
    half = plain((255, 0, 0)).convert("RGBA")
    half.putalpha(Image.new("L", half.size, 128))
    assert decode(encoded(half, "PNG"), LIMITS)[5, 5].tolist() == [255, 127, 127]
    palette = plain((255, 0, 0)).quantize(2)
    clear = decode(encoded(palette, "PNG", transparency=palette.getpixel((0, 0))), LIMITS)
    assert clear[5, 5].tolist() == [255, 255, 255]


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    ramp = (np.arange(64 * 64, dtype=np.uint32).reshape(64, 64) * 16).astype(np.uint16)
    pixels = decode(encoded(Image.fromarray(ramp), "PNG"), LIMITS)
    assert np.array_equal(pixels[..., 0], np.round(ramp / 257).astype(np.uint8))
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_the_first_frame_of_an_animation_is_taken():
    frames = [plain((250, 0, 0)), plain((0, 0, 250))]
    data = encoded(frames[0].quantize(4), "GIF", save_all=True, append_images=[frames[1].quantize(4)])
    red, _, blue = decode(data, LIMITS)[1, 1].tolist()
    assert red > 200 > blue


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_format_is_detected_by_content(kind):
    assert size_of(decode(encoded(plain(), kind), LIMITS)) == (64, 48)


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((4001, 4000), Reason.IMAGE_TOO_LARGE),
        ((100_000, 100_000), Reason.IMAGE_TOO_LARGE),
        ((31, 31), Reason.IMAGE_TOO_SMALL),
        ((401, 100), Reason.IMAGE_ASPECT_EXTREME),
        ((8, 2048), Reason.IMAGE_ASPECT_EXTREME),
    ],
)
def test_size_and_aspect_are_judged_from_the_header_alone(size, reason):
    assert reason_for(header_only_png(*size)) is reason


def test_a_header_without_a_body_is_not_decoded_into_black():
    assert reason_for(header_only_png(64, 64)) in (Reason.IMAGE_TRUNCATED, Reason.IMAGE_CORRUPT)


@pytest.mark.parametrize("share", [0.4, 0.7, 0.95])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_image_cut_short_is_never_trained_on(kind, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    assert str(reason_for(data[: int(len(data) * share)])).startswith("image_")


def photographs() -> list[bytes]:
    table = pq.read_table(ASSETS / "real_pairs.parquet", columns=list(schema.IMAGES))
    return [row[name] for row in table.to_pylist() for name in schema.IMAGES]


@pytest.mark.parametrize(
    "options",
    [{"quality": 78}, {"quality": 95, "subsampling": 0}, {"quality": 50, "subsampling": 1, "progressive": True}],
    ids=["4:2:0", "4:4:4", "4:2:2 progressive"],
)
def test_a_jpeg_becomes_the_pixels_that_pillow_makes_of_it(options, monkeypatch):
    ours, original = [], images._turbo
    monkeypatch.setattr(images, "_turbo", lambda *args: ours.append(original(*args)) or ours[-1])
    for data in photographs():
        odd = Image.open(io.BytesIO(data)).convert("RGB").crop((0, 0, 77, 61))
        for image in (odd, odd.convert("L")):
            again = encoded(image, "JPEG", **options)
            assert np.array_equal(decode(again, LIMITS), np.asarray(Image.open(io.BytesIO(again)).convert("RGB")))
            assert ours[-1] is not None


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 0.97, 1 - 1e-9])
def test_a_jpeg_that_ends_early_is_truncated_whoever_decodes_it(share):
    for data in photographs()[:8]:
        assert reason_for(data[: int(len(data) * share)]) is Reason.IMAGE_TRUNCATED


def test_a_cmyk_jpeg_is_left_to_pillow(monkeypatch):
    monkeypatch.setattr(images, "_turbo", None)
    cmyk = encoded(plain().convert("CMYK"), "JPEG")
    assert np.array_equal(decode(cmyk, LIMITS), np.asarray(Image.open(io.BytesIO(cmyk)).convert("RGB")))


def test_damage_is_judged_as_pillow_judges_it():
    data, generator = photographs()[0], np.random.default_rng(3)
    for _ in range(60):
        damaged = bytearray(data)
        damaged[generator.integers(2, len(data))] ^= int(generator.integers(1, 256))
        try:
            expected = np.asarray(Image.open(io.BytesIO(damaged)).convert("RGB"))
        except Exception:
            expected = None
        try:
            found = decode(bytes(damaged), ImageLimits(min_side=1, max_aspect=1e9))
        except RowRejected:
            found = None
        if expected is None or found is None:
            assert found is expected
        else:
            assert np.array_equal(found, expected)


def test_a_decoder_warning_is_a_failure():
    data = encoded(plain(), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\xff\x01\x12")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert reason_for(data) is Reason.IMAGE_CORRUPT


def test_pixels_without_a_fixed_range_are_refused():
    assert reason_for(encoded(Image.new("F", (64, 64), 0.5), "TIFF")) is Reason.IMAGE_UNDECODABLE


def test_the_crop_takes_the_shortest_side_and_the_place_it_is_told():
    wide = np.tile(np.arange(128, dtype=np.uint8)[None, :, None], (64, 1, 3))
    columns = {x: training_crop(wide, 64, x=x, y=0.5, flip=False)[0, :, 0] for x in (0.0, 0.5, 1.0)}
    assert [column[0] for column in columns.values()] == [0, 32, 64]
    assert np.array_equal(training_crop(wide, 64, x=0.5, y=0.5, flip=True)[0, ::-1, 0], columns[0.5])


@pytest.mark.parametrize("size", [(33, 50), (50, 33), (97, 31), (31, 31), (640, 33)])
def test_every_image_becomes_a_square_of_the_resolution(size):
    crop = training_crop(np.array(plain(size=size)), 32, x=0.3, y=0.9, flip=False)
    assert crop.shape == (32, 32, 3)
    assert crop.dtype == np.uint8
    assert np.all(crop == (10, 20, 200))


def test_shrinking_is_antialiased():
    checkers = np.tile((np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)[..., None], (1, 1, 3))
    crop = training_crop(checkers, 32, x=0.5, y=0.5, flip=False)
    assert np.all(np.abs(crop[4:-4, 4:-4].astype(int) - 127) <= 2)


def test_an_image_of_the_right_size_is_not_resampled():
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(training_crop(noise, 64, x=0.5, y=0.5, flip=False), noise)


@pytest.mark.parametrize(
    ("size", "x", "y", "flip", "top_left"),
    [
        # 60 x 40 shrinks to 30 x 20: ten columns are cut off.
        ((60, 40), 1.0, 0.5, False, (0, 10)),
        ((60, 40), 0.3, 0.5, False, (0, 3)),
        ((60, 40), 0.3, 0.5, True, (0, 7)),
        ((60, 40), 1.0, 0.5, True, (0, 0)),
        # 40 x 60 shrinks to 20 x 30: ten rows are cut off, and mirroring changes nothing.
        ((40, 60), 0.9, 0.2, False, (2, 0)),
        ((40, 60), 0.9, 0.2, True, (2, 0)),
        ((20, 20), 0.9, 0.2, True, (0, 0)),
    ],
)
def test_the_geometry_is_the_size_before_and_the_offset_after_resizing(size, x, y, flip, top_left):
    width, height = size
    assert crop_geometry(size, 20, x=x, y=y, flip=flip) == (height, width, *top_left, 20, 20)


@pytest.mark.parametrize("flip", [False, True])
def test_the_offset_finds_the_crop_in_the_resized_image_mirrored_if_it_was(flip):
    image = np.random.default_rng(2).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    _, _, top, left, _, _ = crop_geometry(size_of(image), 20, x=0.7, y=0.1, flip=flip)
    resized = np.asarray(Image.fromarray(image).resize((30, 20), Image.Resampling.BICUBIC))
    whole = resized[:, ::-1] if flip else resized
    crop = training_crop(image, 20, x=0.7, y=0.1, flip=flip)
    assert np.abs(crop.astype(int) - whole[top : top + 20, left : left + 20]).max() <= 1


@pytest.mark.parametrize("side", [17, 48, 64, 200])
def test_resizing_is_pillows_antialiased_bicubic_to_two_grey_levels(side):
    for data in photographs()[:6]:
        image = decode(data, LIMITS)
        width, height = size_of(image)
        short = min(width, height)
        size = (max(side, round(width * side / short)), max(side, round(height * side / short)))
        expected = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)).astype(int)
        left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
        crop = training_crop(image, side, x=0.5, y=0.5, flip=False)
        difference = np.abs(crop - expected[top : top + side, left : left + side])
        assert difference.max() <= (1 if side < 64 else 2)
        assert difference.mean() < 0.02
