"""Names that the parts of a dataset go by."""

TRAIN_NAMES = ("train", "training")
EVALUATION_NAMES = ("val", "valid", "validation", "test")


def split_names(split: str) -> tuple[str, ...]:
    """Names that a split goes by, in the order they are tried."""
    if split in TRAIN_NAMES:
        return TRAIN_NAMES
    return ("test",) if split == "test" else EVALUATION_NAMES
