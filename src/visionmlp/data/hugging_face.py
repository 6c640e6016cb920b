"""What readers of Hugging Face's datasets share."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from visionmlp.errors import DataError, first_line, require


def open_split(
    data: str, names: Sequence[str], load: Callable[[str], Any], *, download: bool, hint: str
) -> tuple[Any, str]:
    """The first split that there is, and its name.

    Args:
        data: what to call the dataset in a message.
        names: of splits.
        load: opens one; a ValueError about splits means that there is none of that name.
        download: whether it may reach the network.
        hint: how to allow that.

    Raises:
        DataError: if it cannot be opened, or has none of these splits.
    """
    for name in names:
        try:
            with contextlib.nullcontext() if download else offline():
                return load(name), name
        except ValueError as error:
            if "split" not in str(error).lower():
                raise DataError(f"{data} cannot be opened: {first_line(error)}") from error
        except (OSError, RuntimeError) as error:
            raise DataError(f"{data} cannot be opened: {first_line(error)}{'' if download else f'; {hint}'}") from error
    raise DataError(f"{data} has no split {' or '.join(names)}")


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
