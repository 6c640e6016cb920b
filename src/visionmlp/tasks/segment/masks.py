"""From the file of a mask to a class for each pixel. Here, and only here, stored values become class numbers.

Files are read as they are stored: a palette image by its indices and not by its colours, and never through luminance.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from visionmlp.data.decode import reason, turn_of
from visionmlp.errors import UnreadableImage
from visionmlp.tasks.segment.classes import Classes

# Pillow widens grey PNGs of 2 and 4 bits to 8
_WIDENED = {"L;2": 85, "L;4": 17}
_LISTED = 5


def read_mask(path: Path, classes: Classes, *, exif_orientation: bool = True) -> np.ndarray:
    """Class numbers (H, W), uint8, with 255 where a pixel does not count.

    Args:
        path: of a PNG, or another file without loss.
        classes: what its values or colours mean.
        exif_orientation: turn it as its own EXIF says.

    Raises:
        UnreadableImage: why it cannot be used, without its name.
    """
    stored = read_stored(path, exif_orientation=exif_orientation)
    return labels_of(stored, classes)


def read_stored(path: Path, *, exif_orientation: bool = True) -> np.ndarray:
    """What a mask holds: indices (H, W) or colours (H, W, 3), uint8.

    Raises:
        UnreadableImage: for a file that cannot be read, or is of a kind that holds no classes.
    """
    try:
        with Image.open(path) as image:
            return _stored(image, exif_orientation)
    except UnreadableImage:
        raise
    except Exception as error:  # whatever decoders raise on broken files
        raise UnreadableImage(reason(error)) from error


def labels_of(stored: np.ndarray, classes: Classes) -> np.ndarray:
    """Class numbers (H, W), uint8, of what `read_stored` gave.

    Raises:
        UnreadableImage: for a value or colour of no class.
    """
    labels = _of_colours(stored, classes) if stored.ndim == 3 else classes.table()[stored]
    if (labels < 0).any():
        strange = np.unique(stored[labels < 0].reshape(-1, *stored.shape[2:]), axis=0).tolist()
        listed = ", ".join(map(str, strange[:_LISTED])) + (", ..." if len(strange) > _LISTED else "")
        if stored.ndim == 3:
            raise UnreadableImage(f"colour {listed} is no class's by {classes.origin}")
        raise UnreadableImage(f"label {listed} is no class; masks may hold {classes.admitted()}")
    return labels.astype(np.uint8)


def _stored(image: Image.Image, exif_orientation: bool) -> np.ndarray:
    if image.format in ("JPEG", "MPO"):
        raise UnreadableImage("a JPEG, which changes the labels along every edge; save masks as PNG")
    widened = _WIDENED.get(image.tile[0][3], 1) if isinstance(image, PngImageFile) and image.tile else 1  # type: ignore[call-overload]
    image.load()
    turn = turn_of(image) if exif_orientation else None
    mask = image if turn is None else image.transpose(turn)
    if mask.mode == "1":
        return np.asarray(mask).astype(np.uint8)
    if mask.mode == "P":
        return np.asarray(mask)
    if mask.mode == "L":
        return np.asarray(mask) // np.uint8(widened)
    if mask.mode == "RGBA" and mask.getchannel("A").getextrema() == (255, 255):
        mask = mask.convert("RGB")
    if mask.mode == "RGB":
        return np.asarray(mask)
    kind = {"LA": "grey with transparency", "PA": "a palette with transparency", "RGBA": "colour with transparency"}
    if mask.mode.startswith("I"):
        raise UnreadableImage(
            "16 bits or more, as files of instances have (Cityscapes' instanceIds); give masks of 8 bits"
        )
    raise UnreadableImage(f"{kind.get(mask.mode, f'of mode {mask.mode}')}; save it as 8-bit grey or palette PNG")


def _of_colours(stored: np.ndarray, classes: Classes) -> np.ndarray:
    if not classes.coloured:
        raise UnreadableImage(
            "coloured, and nothing says which colour is which class; give classes.json with a palette, or masks of "
            "class numbers"
        )
    codes = {_code(colour): number for number, colour in enumerate(classes.palette)}
    codes |= {_code(colour): 255 for colour in classes.ignored_colours if _code(colour) not in codes}
    known = np.array(sorted(codes), np.int64)
    numbers = np.array([codes[code] for code in known.tolist()], np.int64)
    red, green, blue = (stored[..., channel].astype(np.int64) for channel in range(3))
    given = (red << 16) | (green << 8) | blue
    place = np.searchsorted(known, given).clip(max=len(known) - 1)
    return np.where(known[place] == given, numbers[place], -1)


def _code(colour: tuple[int, int, int]) -> int:
    red, green, blue = colour
    return red << 16 | green << 8 | blue
