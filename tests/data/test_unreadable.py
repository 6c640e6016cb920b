"""An image that cannot be decoded is one line, whatever the decoder raises; odd ones are named once."""

import io
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from visionmlp.data import BadImageLog, EvaluationBatches, Preprocessing, TrainingBatches
from visionmlp.data.batches import EpochOrder
from visionmlp.data.decode import decode
from visionmlp.data.policy import ImageNote
from visionmlp.data.sources import open_evaluation_data
from visionmlp.errors import UnreadableImage
from visionmlp.models.checkpoint import load_model
from visionmlp.tasks.classify.predict import predict

from .raw_files import write_tiff

NOISE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
RAMP = np.arange(64).reshape(8, 8)
Write = Callable[[Path], Any]


def encoded(format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(NOISE).save(file, format, **options)
    return file.getvalue()


def content(data: bytes) -> Write:
    return lambda path: path.write_bytes(data)


def tiff(samples: np.ndarray) -> Write:
    return lambda path: write_tiff(path, samples)


def floats(low: float, high: float) -> Write:
    return tiff(np.linspace(low, high, 64).reshape(8, 8).astype(np.float32))


def cut_avif() -> bytes:
    Image.init()
    if "AVIF" not in Image.SAVE:  # older Pillows know it not at all
        return b"\0\0\0 ftypavif" + bytes(100)
    data = encoded("AVIF")
    return data[: len(data) // 2]


def fits() -> bytes:
    cards = ["SIMPLE  = T", "BITPIX  = 16", "NAXIS   = 2", "NAXIS1  = 8", "NAXIS2  = 8", "END"]
    return "".join(f"{card:<80}" for card in cards).ljust(2880).encode() + bytes(2880)


FILES: dict[str, tuple[Write, str]] = {
    "empty": (content(b""), "not an image, or of an unknown format"),
    "text": (content(b"no image\n"), "not an image, or of an unknown format"),
    "truncated JPEG": (content(encoded("JPEG")[:700]), "truncated"),
    "truncated PNG": (content(encoded("PNG")[:700]), "truncated|broken"),
    "cut AVIF": (content(cut_avif()), "."),
    "cut WebP": (content(encoded("WEBP")[:300]), "."),
    "missing": (lambda _: None, "no such file"),
    "PostScript": (content(encoded("EPS")), "PostScript program, which is not run"),
    "FITS": (content(fits()), "FITS does not say which value is white"),
    "negative integers": (tiff(RAMP.astype(np.int32) - 1), "from -1: negative"),
    "negative 16-bit integers": (tiff(RAMP.astype(np.int16) - 1), "from -1: negative"),
    "signed bytes": (tiff(RAMP.astype(np.int8)), "signed 8-bit"),
    "integers of an unknown white": (tiff(RAMP.astype(np.int32) * 1500), "values up to 94500 do not say"),
    "12 bits in a 32-bit file": (tiff(RAMP.astype(np.uint32) * 10), "values up to 630 do not say"),
    "floats of an unknown white": (floats(0, 1.5), "values up to 1.49706 do not say"),
    "floats beyond all whites": (floats(0, 1e9), "values up to .* do not say"),
    "negative floats": (floats(-0.5, 1), "floats from -0.5: negative"),
    "negative floats to 255": (floats(-20, 255), "floats from -20: negative"),
    "NaN": (tiff(np.where(RAMP == 9, np.nan, 0.5).astype(np.float32)), "NaN or infinity"),
    "infinity": (tiff(np.where(RAMP == 9, np.inf, 0.5).astype(np.float32)), "NaN or infinity"),
}


@pytest.fixture(scope="module")
def model_and_info():
    return load_model("resmlp_test")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of one good image in class a, beside which bad ones are put."""
    (tmp_path / "a").mkdir()
    Image.fromarray(NOISE).save(tmp_path / "a" / "good.png")
    return tmp_path


def evaluation(folder: Path, policy: Any = "skip") -> tuple[EvaluationBatches, BadImageLog]:
    log = BadImageLog(policy)
    transform = Preprocessing(input_size=(3, 32, 32), mean=(0.0,) * 3, std=(1.0,) * 3).transform()
    source = open_evaluation_data(str(folder))
    return EvaluationBatches(source, transform, batch_size=4, mode="RGB", bad_images=log), log


def errors_everywhere(folder: Path, bad: Path, model_and_info: Any) -> list[str]:
    """What predict and evaluation say of the bad one; both use the good one."""
    first, second = predict(*model_and_info, [str(bad), str(folder / "a" / "good.png")])
    assert second.error is None
    assert first.error is not None
    said = [first.error]
    if bad.is_file():
        batches, log = evaluation(folder)
        with pytest.warns(UserWarning, match=r"skipped image .*bad.png: ") as caught:
            assert sum(len(batch.labels) for batch in batches) == 1
        assert log.names == {str(bad)}
        said.append(str(caught[0].message).partition("bad.png: ")[2])
    assert all("\n" not in line and line.strip() for line in said)
    return said


@pytest.mark.parametrize("name", FILES)
def test_files_that_cannot_be_decoded(name: str, folder: Path, model_and_info: Any) -> None:
    write, message = FILES[name]
    bad = folder / "a" / "bad.png"
    write(bad)
    with pytest.raises(UnreadableImage, match=message):
        decode(bad, "RGB", warn=pytest.fail)
    assert len(set(errors_everywhere(folder, bad, model_and_info))) == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (struct.error("unpack requires a buffer of 4 bytes"), "damaged: unpack requires a buffer of 4 bytes"),
        (MemoryError(), "not enough memory for it"),
        (SyntaxError("two\nlines"), "two lines"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (ValueError(), "ValueError"),
        (IndexError("out of range"), "damaged: out of range"),
        (KeyError(258), "damaged: 258"),
        (ZeroDivisionError("division by zero"), "damaged: division by zero"),
        (RecursionError("too deep"), "damaged: too deep"),
        (EOFError(), "damaged: EOFError"),
        (NotImplementedError("kind 7"), "damaged: kind 7"),
    ],
)
def test_every_exception_of_a_decoder_is_one_line(
    error: Exception, message: str, folder: Path, model_and_info: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = folder / "a" / "bad.png"
    Image.new("RGB", (7, 5)).save(bad)
    load = ImageFile.ImageFile.load

    def failing(image: ImageFile.ImageFile) -> Any:
        if image.size == (7, 5):
            raise error
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", failing)
    assert set(errors_everywhere(folder, bad, model_and_info)) == {message}


def test_images_over_pillows_limit_are_named_with_the_remedy(
    folder: Path, model_and_info: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = folder / "a" / "bad.png"
    Image.new("RGB", (200, 200)).save(bad)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1700)
    for line in errors_everywhere(folder, bad, model_and_info):
        assert line == (
            "Image size (40000 pixels) exceeds limit of 3400 pixels; "
            "make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS"
        )
    # up to twice the limit Pillow only warns
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30000)
    with pytest.warns(UserWarning, match=r"bad.png: Image size \(40000 pixels\) .*; make it smaller, or raise PIL"):
        assert next(predict(*model_and_info, [str(bad)])).error is None


TRUNCATED_EXIF = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0"
ORIENTATION_9 = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0\0\0\0\0"
BROKEN_EXIF = {
    "no header": (b"Exif\0\0nonsense", "broken EXIF"),
    "truncated": (TRUNCATED_EXIF, "EXIF"),
    "orientation 9": (ORIENTATION_9, "orientation 9"),
}


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("name", BROKEN_EXIF)
def test_broken_exif_is_a_warning_that_names_the_file(
    name: str, format: str, folder: Path, model_and_info: Any
) -> None:
    data, message = BROKEN_EXIF[name]
    odd = folder / "a" / "odd.png"
    odd.write_bytes(encoded(format, exif=data))
    texts: list[str] = []
    upright = decode(odd, "RGB", warn=texts.append)
    assert np.array_equal(upright, Image.open(io.BytesIO(encoded(format))).convert("RGB"))
    assert len(texts) == len(set(texts))
    assert message in texts[0]
    assert "\n" not in texts[0]
    with pytest.warns(UserWarning, match=f"odd.png: .*{message}"):
        assert next(predict(*model_and_info, [str(odd)])).error is None
    batches, _ = evaluation(folder, "stop")
    for expected in (len(texts), 0):  # named once
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert sum(len(batch.labels) for batch in batches) == 2
        assert len(caught) == expected
        assert all(str(warning.message).startswith(str(odd)) for warning in caught)


def test_training_names_odd_images_too_and_workers_pass_it_on(folder: Path) -> None:
    (folder / "a" / "odd.png").write_bytes(encoded("PNG", exif=TRUNCATED_EXIF))
    source = open_evaluation_data(str(folder))
    transform = Preprocessing(input_size=(3, 32, 32), mean=(0.0,) * 3, std=(1.0,) * 3).transform()
    order = EpochOrder(len(source), 1, seed=0)
    batches = TrainingBatches(source, transform, order, mode="RGB", bad_images=BadImageLog("stop"), num_workers=1)
    try:
        with pytest.warns(UserWarning, match=r"odd.png: .*EXIF"):
            list(batches.epoch(0))
    finally:
        batches.close()


def test_notes_end_where_nobody_reads_on() -> None:
    log = BadImageLog("stop")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        log.note([ImageNote(f"{number}.png", "odd") for number in range(500)])
    assert len(caught) == 21
    assert "further notes are left out" in str(caught[-1].message)
