"""Videos: frames come back as they were written, and what cannot be read or written says so."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from visionmlp.data.inputs import OutputNames, find_images, open_images
from visionmlp.data.videos import SUFFIXES, WRITTEN, Clip, ClipWriter, is_video, read_frames
from visionmlp.errors import MissingExtra, Note
from visionmlp.files import OutputError

SIZE = (64, 48)


def picture(number: int) -> Image.Image:
    """A level of red, and a bar that moves."""
    pixels = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    pixels[..., 0] = 40 * number
    pixels[:, 8 * number : 8 * number + 8, 1] = 255
    return Image.fromarray(pixels)


def clip(path: Path, frames: int = 5, rate: float = 10.0) -> Path:
    written = Clip(str(path), rate)
    with ClipWriter(force=False) as writer:
        for number in range(frames):
            writer.write(path, written, picture(number))
    return path


def test_frames_are_in_order_and_in_colour(tmp_path: Path) -> None:
    path = clip(tmp_path / "Clip.mp4")
    frames = list(read_frames(str(path), "RGB"))
    assert [frame.name for frame in frames] == [f"{path}#{number}" for number in range(5)]
    assert {frame.clip for frame in frames} == {Clip(str(path), 10.0)}
    for number, frame in enumerate(frames):
        given, expected = (np.asarray(image, float) for image in (frame.image, picture(number)))
        assert given.shape == (48, 64, 3)
        assert abs(given - expected).mean() < 12  # the codec loses some
        assert given[:, 8 * number + 2 : 8 * number + 6, 1].mean() > 200
    assert next(read_frames(str(path), "L")).image.mode == "L"


def test_images_and_videos_take_turns(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", frames=2)
    picture(1).save(tmp_path / "a.png")
    opened = list(open_images([str(path), str(tmp_path / "a.png"), str(path)], "RGB", exif_orientation=True))
    assert [one.name for one in opened] == [f"{path}#0", f"{path}#1", str(tmp_path / "a.png"), f"{path}#0", f"{path}#1"]
    names = OutputNames()
    assert [names.of(one) for one in opened] == ["a", "a", "a-2", "a-3", "a-3"]
    assert list(find_images([str(tmp_path)])) == [str(tmp_path / "a.png")]  # folders are searched for images


def test_what_is_no_video_says_so(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.avi").touch()
    whole = clip(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "torn.mp4").write_bytes(whole[: len(whole) // 2])
    for name, reason in (
        ("text.mp4", "not a video"),
        ("empty.avi", "not a video"),
        ("torn.mp4", "not a video"),
        ("none.mp4", "no such file"),
    ):
        (one,) = open_images([str(tmp_path / name)], "RGB", exif_orientation=True)
        assert isinstance(one.image, str)
        assert reason in one.image
    # the libraries below OpenCV are silent, where nothing has imported it before
    code = (
        f"from visionmlp.data.inputs import open_images\nprint(*open_images([{str(tmp_path / 'empty.avi')!r}], 'RGB', "
    )
    code += "exif_orientation=True))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "not a video" in done.stdout


def test_a_video_that_ends_early_is_pointed_out(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"XVID"), 10, SIZE)
    noise = np.random.default_rng(0)
    for _ in range(60):
        writer.write(noise.integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8))
    writer.release()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.warns(Note, match=r"frames could be read, its header says 60"):
        assert 5 < len(list(read_frames(str(path), "RGB"))) < 55


def test_a_video_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (Clip(name, 5.0) for name in "ab")
    writer = ClipWriter(force=False)
    writer.write(tmp_path / "a.mp4", first, picture(0))
    writer.write(tmp_path / "b.mp4", second, picture(0))  # the first is done
    writer.__exit__(RuntimeError, RuntimeError("stop"), None)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    with pytest.raises(OutputError, match="exists"), ClipWriter(force=False) as writer:
        writer.write(tmp_path / "a.mp4", first, picture(0))
    with ClipWriter(force=False) as writer:  # the same video twice is two videos
        for name in ("c.mp4", "d.mp4"):
            writer.write(tmp_path / name, Clip("c", 5.0), picture(0))
    assert [len(list(read_frames(str(tmp_path / name), "RGB"))) for name in ("c.mp4", "d.mp4")] == [1, 1]
    with ClipWriter(force=True) as writer:
        for _ in range(3):
            writer.write(tmp_path / "a.mp4", first, picture(0))
    assert len(list(read_frames(str(tmp_path / "a.mp4"), "RGB"))) == 3

    class Full:
        """Of a disk that is full: OpenCV's writer raises nothing."""

        def isOpened(self) -> bool:
            return True

        def write(self, _pixels: np.ndarray) -> None: ...

        def release(self) -> None: ...

    monkeypatch.setattr(cv2, "VideoWriter", lambda *_: Full())
    with pytest.raises(OutputError, match=r"0 of 1 frames.*disk full"), ClipWriter(force=True) as writer:
        writer.write(tmp_path / "a.mp4", first, picture(0))
    assert len(list(read_frames(str(tmp_path / "a.mp4"), "RGB"))) == 3


def test_without_opencv_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip(tmp_path / "a.mp4")
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(MissingExtra, match=r"visionmlp\[video\]"):
        list(open_images([str(path)], "RGB", exif_orientation=True))


def test_names() -> None:
    assert [is_video(name) for name in ("a.MP4", "b.webm", "c.png", "-", "mp4")] == [True, True, False, False, False]
    assert WRITTEN in SUFFIXES
