"""From a file to 8-bit grey or colour, one way for training, evaluation, calibration and prediction.

docs/data.md says as a table what happens to which file. Colour profiles and gamma are left as they are.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageCms, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile

from visionmlp.errors import UnreadableImage

BACKGROUND = "white"
"""Colour behind whatever is transparent."""

# what makes an image upright, by the orientation that EXIF says
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIGNED = 2
_WHITE_IS_ZERO = 0
_REMEDY = "make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS"


def decode(
    file: Path | BinaryIO | Image.Image,
    mode: Literal["L", "RGB"],
    *,
    warn: Callable[[str], object],
    exif_orientation: bool = True,
) -> Image.Image:
    """Decode an image, the first of several in a file, to 8 bits a channel.

    Args:
        file: path, open file, or what a dataset has decoded already.
        mode: grey or colour.
        warn: takes a line about an image that is used all the same, such as one with broken EXIF.
        exif_orientation: turn the image as its EXIF says.

    Raises:
        UnreadableImage: whatever the decoder raised.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if isinstance(file, Image.Image):
                image = _decoded(file, mode, exif_orientation)
            else:
                with Image.open(file) as opened:
                    if opened.format == "EPS":  # whatever its suffix; Pillow would hand it to Ghostscript
                        raise UnreadableImage("a PostScript program, which is not run; save it as PNG")
                    image = _decoded(opened, mode, exif_orientation)
        except Exception as error:  # OSError, SyntaxError, ValueError, struct.error, MemoryError, ... on broken files
            raise UnreadableImage(reason(error)) from error
    for text in dict.fromkeys(_notes(caught)):  # Pillow warns of the same when it opens, loads and reads EXIF
        warn(text)
    return image


def reason(error: Exception) -> str:
    """Why an image cannot be read, in one line without its name."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of an unknown format"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, Image.DecompressionBombError):
        return f"{_first_clause(error)}; {_REMEDY}"
    if isinstance(error, MemoryError):
        return "not enough memory for it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = _one_line(error) or type(error).__name__
    return text if isinstance(error, OSError | SyntaxError | ValueError) else f"damaged: {text}"


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What makes an image upright, as its EXIF says; None for one that is already."""
    return _TURNS.get(_orientation(image))


def _decoded(image: Image.Image, mode: Literal["L", "RGB"], exif_orientation: bool) -> Image.Image:
    if isinstance(image, PngImageFile):
        _correct_transparency(image)
    image.load()
    turn = turn_of(image) if exif_orientation else None
    flat = _opaque(_eight_bits(image))
    flat = flat if flat.mode == mode else flat.convert(mode)
    return flat if turn is None else flat.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        exif = image.getexif()
        if not exif and image.info.get("exif"):
            Image.Exif().load(image.info["exif"])  # a JPEG swallowed, when it was opened, what this raises
        orientation = exif.get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # as decoders do
        warnings.warn(f"broken EXIF ({_one_line(error) or type(error).__name__}), taken as upright", stacklevel=2)
        return 1
    if orientation not in range(9):  # 0 is what some cameras write for unknown
        warnings.warn(f"broken EXIF (orientation {orientation!r}), taken as upright", stacklevel=2)
        return 1
    return orientation


def _correct_transparency(image: PngImageFile) -> None:
    """A PNG names its transparent colour as stored, while Pillow widens 2 and 4 bits and halves 16-bit colours."""
    transparency = image.info.get("transparency")
    stored = image.tile[0][3] if image.tile else None
    if isinstance(transparency, int) and stored in ("L;2", "L;4"):
        image.info["transparency"] = transparency * (85 if stored == "L;2" else 17)
    elif isinstance(transparency, tuple) and stored == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in transparency)


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image in one of Pillow's modes of at most 8 bits a channel that it converts rightly to RGB."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    signed = tags.get(SAMPLEFORMAT, (1,))[0] == _SIGNED
    if image.mode == "L" and signed:
        raise UnreadableImage("signed 8-bit values have no black; save it as unsigned")
    if image.mode == "LAB":
        profiles = [ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")]
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        assert converted is not None  # not in place
        return converted
    if image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        # only Adobe's are stored inverted, but Pillow takes all for Adobe's
        return ImageChops.invert(image)
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    if image.format == "FITS":
        raise UnreadableImage("FITS does not say which value is white; save it as PNG or TIFF")
    if image.mode == "F":
        grey = _from_floats(np.asarray(image))
    else:
        if tags:
            depth = tags[BITSPERSAMPLE][0] - signed
        else:
            depth = 16 if image.mode != "I" or image.format in ("PNG", "PPM") else 31
        grey = _from_integers(np.asarray(image), depth)
    if tags.get(PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO:
        grey = 255 - grey
    if "transparency" in image.info:
        alpha = np.where(np.asarray(image) == image.info["transparency"], 0, 255).astype(np.uint8)
        return Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    return Image.fromarray(grey)


def _from_integers(values: np.ndarray, depth: int) -> np.ndarray:
    """The 8 high bits of unsigned values with so many; of those of more than 16 bits, see `_white`."""
    if depth == 32:
        values = values.view(np.uint32)  # Pillow's are signed
    if depth != 16 and values.min() < 0:
        raise UnreadableImage(f"values from {values.min()}: negative integers have no grey")
    if depth > 16:
        depth = int(_white(int(values.max()), (2**8 - 1, 2**16 - 1, 2**depth - 1))).bit_length()
    return (values >> (depth - 8)).astype(np.uint8)


def _from_floats(values: np.ndarray) -> np.ndarray:
    """Rounded to 8 bits, see `_white`."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low + high):
        raise UnreadableImage("floats with NaN or infinity have no grey")
    half = 1 + 1 / 510  # half a grey level beyond is rounding
    white = _white(high / half, (1, 2**8 - 1, 2**16 - 1))
    if low < white * (1 - half):
        raise UnreadableImage(f"floats from {low:.4g}: negative values have no grey")
    return (values * (255 / white)).round().clip(0, 255).astype(np.uint8)


def _white(largest: float, whites: Sequence[int]) -> int:
    """The smallest of these that no value exceeds; a picture with less than a sixteenth of it would be black."""
    place = next((place for place, white in enumerate(whites) if largest <= white), None)
    if place is None or (place and largest < whites[place] / 16):
        raise UnreadableImage(f"values up to {largest:.6g} do not say which is white; scale them to 8 or 16 bits")
    return whites[place]


def _opaque(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)


def _notes(caught: Iterable[warnings.WarningMessage]) -> Iterator[str]:
    for warning in caught:
        if issubclass(warning.category, Image.DecompressionBombWarning):
            yield f"{_first_clause(warning.message)}; {_REMEDY}"
        elif issubclass(warning.category, UserWarning):
            yield _one_line(warning.message)


def _first_clause(message: object) -> str:
    return str(message).partition(",")[0]


def _one_line(message: object) -> str:
    return " ".join(str(message).split())
