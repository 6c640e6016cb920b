"""What readers of Hugging Face's datasets share."""

import contextlib
from collections.abc import Iterator

from visionmlp.errors import require


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Keep Hugging Face's libraries from the network; their switches are read from the environment only once."""
    settings = [
        (require("huggingface_hub.constants", extra="hfds"), "HF_HUB_OFFLINE"),
        (require("datasets.config", extra="hfds"), "HF_HUB_OFFLINE"),
    ]
    before = [vars(module).get(name, False) for module, name in settings]
    for module, name in settings:
        setattr(module, name, True)
    try:
        yield
    finally:
        for (module, name), value in zip(settings, before, strict=True):
            setattr(module, name, value)
