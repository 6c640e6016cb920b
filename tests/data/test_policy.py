"""Bad images are named once, whatever their names."""

import os
from pathlib import Path

import pytest

from visionmlp.data.policy import BadImage, BadImageLog, names_of_bad_images


def test_names_that_are_not_utf8_are_written_as_they_are_and_once(tmp_path: Path) -> None:
    path = tmp_path / "bad_images.txt"
    image = BadImage(os.fsdecode(b"caf\xe9.png"), "truncated")
    with pytest.warns(UserWarning, match="skipped image"):
        BadImageLog("skip", path).report([image, image])
    BadImageLog("skip", path).report([image])  # a resumed session
    assert path.read_bytes() == b"caf\xe9.png\ttruncated\n"


def test_names_with_separators_are_written_once_too(tmp_path: Path) -> None:
    path = tmp_path / "bad_images.txt"
    images = [BadImage(name, "truncated") for name in ("a\tb.png", "c\nd.png", "e\u2028f.png", "g\rh.png")]
    with pytest.warns(UserWarning, match="skipped image") as caught:
        BadImageLog("skip", path).report(images)
    assert len(caught) == len(images)
    BadImageLog("skip", path).report(images)  # a resumed session
    assert names_of_bad_images(path) == ["a\\tb.png", "c\\nd.png", "e\u2028f.png", "g\rh.png"]
