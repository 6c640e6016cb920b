"""Bad images are named once, whatever their names."""

import os
from pathlib import Path

import pytest

from visionmlp.data.policy import BadImage, BadImageLog


def test_names_that_are_not_utf8_are_written_as_they_are_and_once(tmp_path: Path) -> None:
    path = tmp_path / "bad_images.txt"
    image = BadImage(os.fsdecode(b"caf\xe9.png"), "truncated")
    with pytest.warns(UserWarning, match="skipped image"):
        BadImageLog("skip", path).report([image, image])
    BadImageLog("skip", path).report([image])  # a resumed session
    assert path.read_bytes() == b"caf\xe9.png\ttruncated\n"
