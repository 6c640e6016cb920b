"""Files that show the same picture give the same tensor on every route; others are refused by name."""

import dataclasses
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops, ImageCms

from visionmlp.data import Augmentation, BadImageLog, EvaluationBatches, Preprocessing, TrainingBatches
from visionmlp.data.batches import EpochOrder
from visionmlp.data.decode import decode
from visionmlp.data.sources import open_evaluation_data
from visionmlp.deploy.quantize import calibration_images
from visionmlp.errors import InvalidConfig
from visionmlp.models.checkpoint import load_model
from visionmlp.tasks.classify.predict import predict

from .raw_files import COLOUR, GREY, GREY_ALPHA, write_png, write_tiff

SIZE = 20, 28
"""Height and width."""
_Y, _X = np.mgrid[: SIZE[0], : SIZE[1]]
GREY8 = (np.sin(_Y / 5) * 60 + _X * 6 + 20).round().clip(0, 255).astype(np.uint8)
"""Smooth, and unlike itself in every other orientation."""
COLOUR8 = np.stack([GREY8, 255 - _Y * 9, np.full(SIZE, 90)], axis=-1).astype(np.uint8)
COLOUR_IMAGE = Image.fromarray(COLOUR8)
SOFT = COLOUR_IMAGE.point(lambda value: value // 2 + 64)
"""Of colours that 8 bits of LAB hold."""
SHADE = Image.fromarray((_X * 9).astype(np.uint8))
"""An alpha channel, from 0 to 243."""

Write = Callable[[Path], Any]


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> Write:
    return lambda path: image.save(path, format, **options)


def png(samples: np.ndarray, **options: Any) -> Write:
    return lambda path: write_png(path, samples, **options)


def tiff(samples: np.ndarray, **options: Any) -> Write:
    return lambda path: write_tiff(path, samples, **options)


def exif(orientation: object) -> Image.Exif:
    result = Image.Exif()
    result[0x0112] = orientation
    return result


def on_white(image: np.ndarray, alpha: np.ndarray) -> Image.Image:
    share = alpha[..., None] / 255
    return Image.fromarray((image * share + 255 * (1 - share)).round().astype(np.uint8))


def with_hole(hole: np.ndarray, image: np.ndarray = COLOUR8) -> Image.Image:
    return on_white(image if image.ndim == 3 else np.stack([image] * 3, axis=-1), np.where(hole, 0, 255))


def palette_image(**info: Any) -> Image.Image:
    image = COLOUR_IMAGE.quantize(64)
    image.info.update(info)
    return image


def palette_alpha() -> bytes:
    return bytes(range(0, 256, 4))


def shown(palette: Image.Image, alpha: np.ndarray) -> Image.Image:
    """What a palette image with so transparent entries shows."""
    return on_white(np.asarray(palette.convert("RGB")), alpha[np.asarray(palette)])


def stored_cmyk(image: Image.Image, *, adobe: int | None) -> Write:
    """A JPEG of these four channels as they are, with Adobe's marker (its number of the transform) or without."""

    def write(path: Path) -> None:
        file = io.BytesIO()
        ImageChops.invert(image).save(file, "JPEG", quality=100, subsampling=0)  # Pillow inverts
        data = bytearray(file.getvalue())
        start = data.index(b"\xff\xee\x00\x0eAdobe")
        if adobe is None:
            del data[start : start + 16]
        else:
            data[start + 15] = adobe
        path.write_bytes(data)

    return write


def four(*channels: np.ndarray) -> Image.Image:
    return Image.merge("CMYK", [Image.fromarray(channel.astype(np.uint8)) for channel in channels])


def lab(image: Image.Image) -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    result = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    assert result is not None
    return result


def turned(orientation: int, image: Image.Image = COLOUR_IMAGE) -> Image.Image:
    """Stored so that this orientation shows the image upright."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    return image.transpose(undo[orientation])


WIDE = GREY8.astype(np.uint16) * 257
OPAQUE16 = np.full(SIZE, 65535)
OTHER = Image.fromarray(255 - COLOUR8)
ANIMATED = {"save_all": True, "append_images": [OTHER]}
FEW = np.round(GREY8 / 85).astype(np.uint8)
"""2-bit values."""
NET = _X % 3 == 0
HIDDEN = np.where(NET[..., None], (0, 255, 77), COLOUR8).astype(np.uint8)
"""With a colour that nothing else has, to be made transparent."""
grey, colour = saved(Image.fromarray(GREY8)), saved(COLOUR_IMAGE)

PAIRS: dict[str, tuple[Write, Write, int]] = {
    "16-bit PNG": (saved(Image.fromarray(WIDE)), grey, 0),
    "8 bits shifted in a 16-bit PNG": (saved(Image.fromarray(GREY8.astype(np.uint16) << 8)), grey, 0),
    "16-bit PGM": (lambda path: path.write_bytes(b"P5 28 20 65535\n" + WIDE.astype(">u2").tobytes()), grey, 0),
    "nearly black 16-bit PGM": (
        lambda path: path.write_bytes(b"P5 28 20 65535\n" + (WIDE % 200).astype(">u2").tobytes()),
        saved(Image.new("L", SIZE[::-1])),
        0,
    ),
    "16-bit JPEG 2000": (saved(Image.fromarray(WIDE), "JPEG2000"), grey, 0),
    "16-bit TIFF": (tiff(WIDE), grey, 0),
    "16-bit TIFF, big-endian": (tiff(WIDE, big_endian=True), grey, 0),
    "16-bit TIFF, white is zero": (tiff(65535 - WIDE, white_is_zero=True), grey, 0),
    "12-bit TIFF": (tiff(GREY8.astype(np.uint16) * 16 + 7, bits=12), grey, 0),
    "signed 16-bit TIFF": (tiff(GREY8.astype(np.int16) * 128), grey, 0),
    "unsigned 32-bit TIFF": (tiff(GREY8.astype(np.uint32) << 24), grey, 0),
    "signed 32-bit TIFF": (tiff(GREY8.astype(np.int32) << 23), grey, 0),
    "16 bits in a 32-bit TIFF": (tiff(WIDE.astype(np.int32)), grey, 0),
    "8 bits in a 32-bit TIFF": (tiff(GREY8.astype(np.uint32)), grey, 0),
    "float TIFF to 1": (tiff((GREY8 / 255).astype(np.float32)), grey, 0),
    "float TIFF to 255": (tiff(GREY8.astype(np.float32)), grey, 0),
    "float TIFF to 65535": (tiff(WIDE.astype(np.float32)), grey, 0),
    "float TIFF with rounding beyond 0 and 1": (tiff((GREY8 / 254.9 - 0.001).astype(np.float32)), grey, 1),
    "float TIFF, white is zero": (tiff((1 - GREY8 / 255).astype(np.float32), white_is_zero=True), grey, 0),
    "black float TIFF": (tiff(np.zeros(SIZE, np.float32)), saved(Image.new("L", SIZE[::-1])), 0),
    "16-bit RGB PNG": (png(COLOUR8.astype(int) * 257, bits=16, colour=COLOUR), colour, 0),
    "16-bit RGB TIFF": (tiff(COLOUR8.astype(np.uint16) * 257), colour, 0),
    "16-bit grey and alpha": (png(np.stack([WIDE, OPAQUE16], -1), bits=16, colour=GREY_ALPHA), grey, 0),
    "1-bit PNG": (saved(Image.fromarray(GREY8 > 99)), saved(Image.fromarray(GREY8 > 99).convert("L")), 0),
    **{f"EXIF {o}": (saved(turned(o), exif=exif(o)), colour, 0) for o in range(2, 9)},
    "EXIF 0": (saved(COLOUR_IMAGE, exif=exif(0)), colour, 0),
    "EXIF 6, 16-bit": (saved(turned(6, Image.fromarray(WIDE)), exif=exif(6)), grey, 0),
    "EXIF 6, WebP": (saved(turned(6), "WEBP", lossless=True, exif=exif(6)), colour, 0),
    "orientation 6, TIFF": (saved(turned(6), "TIFF", tiffinfo={274: 6}), colour, 0),
    "alpha": (
        saved(Image.merge("RGBA", [*COLOUR_IMAGE.split(), SHADE])),
        saved(on_white(COLOUR8, np.asarray(SHADE))),
        1,
    ),
    "opaque alpha": (saved(COLOUR_IMAGE.convert("RGBA")), colour, 0),
    "grey alpha": (
        saved(Image.merge("LA", [Image.fromarray(GREY8), SHADE])),
        saved(on_white(np.stack([GREY8] * 3, -1), np.asarray(SHADE))),
        1,
    ),
    "16-bit alpha": (
        png(np.stack([WIDE, np.asarray(SHADE).astype(int) * 257], -1), bits=16, colour=GREY_ALPHA),
        saved(on_white(np.stack([GREY8] * 3, -1), np.asarray(SHADE))),
        1,
    ),
    "transparent colour": (png(HIDDEN, bits=8, colour=COLOUR, transparent=(0, 255, 77)), saved(with_hole(NET)), 0),
    "transparent 16-bit colour": (
        png(HIDDEN.astype(int) << 8, bits=16, colour=COLOUR, transparent=(0, 255 << 8, 77 << 8)),
        saved(with_hole(NET)),
        0,
    ),
    "transparent grey": (png(GREY8, bits=8, colour=GREY, transparent=(80,)), saved(with_hole(GREY8 == 80, GREY8)), 0),
    "transparent 16-bit grey": (
        png(WIDE, bits=16, colour=GREY, transparent=(80 * 257,)),
        saved(with_hole(GREY8 == 80, GREY8)),
        0,
    ),
    "transparent 2-bit grey": (
        png(FEW, bits=2, colour=GREY, transparent=(1,)),
        saved(with_hole(FEW == 1, FEW * 85)),
        0,
    ),
    "transparent 4-bit grey": (
        png(FEW * 4, bits=4, colour=GREY, transparent=(8,)),
        saved(with_hole(FEW == 2, FEW * 68)),
        0,
    ),
    "transparent 1-bit grey": (
        png(FEW // 2, bits=1, colour=GREY, transparent=(0,)),
        saved(Image.new("L", SIZE[::-1], 255)),
        0,
    ),
    "palette": (saved(palette_image()), saved(palette_image().convert("RGB")), 0),
    "palette with a transparent colour": (
        saved(palette_image(transparency=5)),
        saved(shown(palette_image(), np.where(np.arange(256) == 5, 0, 255))),
        0,
    ),
    "palette with alpha": (
        saved(palette_image(), transparency=palette_alpha()),
        saved(shown(palette_image(), np.frombuffer(palette_alpha().ljust(256, b"\xff"), np.uint8))),
        1,
    ),
    "GIF with a transparent colour": (
        saved(palette_image(), "GIF", transparency=5, optimize=False),
        saved(shown(palette_image(), np.where(np.arange(256) == 5, 0, 255))),
        0,
    ),
    "animated GIF": (saved(palette_image(), "GIF", **ANIMATED), saved(palette_image().convert("RGB")), 0),
    "animated WebP": (saved(COLOUR_IMAGE, "WEBP", lossless=True, **ANIMATED), colour, 0),
    "animated PNG": (saved(COLOUR_IMAGE, "PNG", **ANIMATED), colour, 0),
    "TIFF of two pages": (saved(COLOUR_IMAGE, "TIFF", **ANIMATED), colour, 0),
    "MPO": (saved(COLOUR_IMAGE, "MPO", quality=90, **ANIMATED), saved(COLOUR_IMAGE, "JPEG", quality=90), 0),
    "Adobe's CMYK": (
        saved(COLOUR_IMAGE.convert("CMYK"), "JPEG", quality=100, subsampling=0),
        saved(COLOUR_IMAGE, "JPEG", quality=100, subsampling=0),
        3,
    ),
    "plain CMYK": (
        stored_cmyk(COLOUR_IMAGE.convert("CMYK"), adobe=None),
        saved(COLOUR_IMAGE, "JPEG", quality=100, subsampling=0),
        3,
    ),
    "Adobe's YCCK": (
        # Y, Cb and Cr of the inverted inks' complement
        stored_cmyk(
            four(*np.moveaxis(np.asarray(OTHER.convert("YCbCr")), -1, 0), np.full(SIZE, 255)),
            adobe=2,
        ),
        saved(COLOUR_IMAGE, "JPEG", quality=100, subsampling=0),
        4,
    ),
    "CMYK TIFF": (saved(COLOUR_IMAGE.convert("CMYK"), "TIFF"), colour, 0),
    "LAB TIFF": (saved(lab(SOFT), "TIFF"), saved(SOFT), 4),
    "YCbCr TIFF": (saved(COLOUR_IMAGE.convert("YCbCr"), "TIFF", compression="tiff_lzw"), colour, 4),
}


@pytest.fixture(scope="module")
def model_and_info():
    return load_model("resmlp_test", img_size=16)


def files_of(path: Path, write: Write) -> Path:
    """As many copies as calibration asks for, in one class folder; all named .png, as the content decides."""
    (path / "a").mkdir(parents=True)
    write(path / "a" / "0.png")
    for number in range(1, 8):
        (path / "a" / f"{number}.png").write_bytes((path / "a" / "0.png").read_bytes())
    return path


def seen(route: str, folder: Path, preprocessing: Preprocessing, model_and_info: Any) -> torch.Tensor:
    """The tensor of the first image, on one of the routes that an image can take."""
    if route == "calibration":
        return torch.from_numpy(next(calibration_images(str(folder), preprocessing.to_saved(), count=8)))[0]
    if route == "predict":
        model, info = model_and_info
        inputs: list[torch.Tensor] = []
        hook = model.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        info = dataclasses.replace(info, preprocessing=preprocessing.to_saved())
        (prediction,) = predict(model, info, [str(folder / "a" / "0.png")])
        hook.remove()
        assert prediction.error is None
        return inputs[0][0]
    source = open_evaluation_data(str(folder))
    reading: dict[str, Any] = {
        "mode": preprocessing.mode,
        "exif_orientation": preprocessing.exif_orientation,
        "bad_images": BadImageLog("stop"),
    }
    if route == "eval":
        return next(iter(EvaluationBatches(source, preprocessing.transform(), batch_size=1, **reading))).images[0]
    transform = Augmentation(crop="center", hflip=0.0).transform(preprocessing)
    order = EpochOrder(len(source), 1, seed=0)
    return next(TrainingBatches(source, transform, order, **reading).epoch(0)).images[0]


@pytest.mark.parametrize("name", PAIRS)
def test_files_that_show_the_same_give_the_same_tensor(name: str, tmp_path: Path, model_and_info: Any) -> None:
    one, other, tolerance = PAIRS[name]
    folders = [files_of(tmp_path / side, write) for side, write in (("one", one), ("other", other))]
    preprocessing = Preprocessing(input_size=(3, 16, 16), mean=(0.0,) * 3, std=(1 / 255,) * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for route in ("train", "eval", "calibration", "predict"):
            a, b = (seen(route, folder, preprocessing, model_and_info) for folder in folders)
            assert b.std() > 15 or "black" in name or "1-bit" in name
            assert (a - b).abs().max() <= tolerance + 1e-3, route
        modes: tuple[Literal["L", "RGB"], ...] = ("L", "RGB")
        for mode in modes:
            a, b = (
                np.asarray(decode(folder / "a" / "0.png", mode, warn=pytest.fail)).astype(int) for folder in folders
            )
            assert a.shape == b.shape
            assert np.abs(a - b).max() <= tolerance, mode


@pytest.mark.parametrize("orientation", [3, 6])
def test_without_the_switch_images_stay_as_they_are_stored(orientation: int, tmp_path: Path, model_and_info) -> None:
    stored = turned(orientation)
    folders = [
        files_of(tmp_path / "one", saved(stored, exif=exif(orientation))),
        files_of(tmp_path / "other", saved(stored)),
    ]
    preprocessing = Preprocessing(input_size=(3, 16, 16), mean=(0.0,) * 3, std=(1.0,) * 3, exif_orientation=False)
    for route in ("train", "eval", "calibration", "predict"):
        a, b = (seen(route, folder, preprocessing, model_and_info) for folder in folders)
        assert torch.equal(a, b), route
        assert not torch.equal(
            a, seen(route, folders[0], dataclasses.replace(preprocessing, exif_orientation=True), model_and_info)
        )


ON = Preprocessing(input_size=(3, 16, 16), mean=(0.0,) * 3, std=(1.0,) * 3)


def test_the_switch_is_saved_where_it_is_off() -> None:
    assert "exif_orientation" not in ON.to_saved()  # timm's arguments alone, as in older checkpoints
    for preprocessing in (ON, dataclasses.replace(ON, exif_orientation=False)):
        text = json.dumps(preprocessing.to_saved())
        assert Preprocessing.from_saved(json.loads(text)) == preprocessing


@pytest.mark.parametrize(
    ("saved_values", "message"),
    [
        ({"mean": [0.5] * 3, "std": [0.5] * 3}, "lacks input_size"),
        ({**ON.to_saved(), "crop_mode": "border"}, "has an unknown crop_mode"),
    ],
)
def test_saved_preprocessing_that_cannot_be_followed_is_refused(saved_values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        Preprocessing.from_saved(saved_values)


RGB_OF_GREY = Image.fromarray(GREY8).convert("RGB")
IN_MEMORY = {
    "I": (Image.fromarray(WIDE).convert("I"), RGB_OF_GREY, 0),
    "I;16": (Image.fromarray(WIDE), RGB_OF_GREY, 0),
    "I;16B": (Image.frombytes("I;16B", SIZE[::-1], WIDE.astype(">u2").tobytes()), RGB_OF_GREY, 0),
    "F": (Image.fromarray(WIDE).convert("F"), RGB_OF_GREY, 0),
    "La": (Image.fromarray(GREY8).convert("LA").convert("La"), RGB_OF_GREY, 0),
    "RGBa": (COLOUR_IMAGE.convert("RGBA").convert("RGBa"), COLOUR_IMAGE, 0),
    "RGBX": (COLOUR_IMAGE.convert("RGBX"), COLOUR_IMAGE, 0),
    "PA": (palette_image().convert("PA"), palette_image().convert("RGB"), 0),
    "HSV": (COLOUR_IMAGE.convert("HSV"), COLOUR_IMAGE, 8),
    "1": (Image.fromarray(GREY8 > 99), Image.fromarray((GREY8 > 99) * np.uint8(255)).convert("RGB"), 0),
    "P with EXIF": (turned(6), COLOUR_IMAGE, 0),
}
IN_MEMORY["P with EXIF"][0].getexif()[0x0112] = 6


@pytest.mark.parametrize("name", IN_MEMORY)
def test_images_that_a_dataset_has_decoded(name: str) -> None:
    image, expected, tolerance = IN_MEMORY[name]
    before = image.tobytes(), image.size
    result = decode(image, "RGB", warn=pytest.fail)
    assert result.mode == "RGB"
    assert np.abs(np.asarray(result).astype(int) - np.asarray(expected)).max() <= tolerance
    assert (image.tobytes(), image.size) == before
