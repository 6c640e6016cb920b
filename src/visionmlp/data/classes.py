"""Which output of a model a class of a dataset belongs to. It is known, or refused; never guessed."""

import re
from collections import Counter
from collections.abc import Sequence

from timm.data import ImageNetInfo, infer_imagenet_subset

from visionmlp.errors import DataError

IMAGENET_CLASSES = 1000
_SYNSET = re.compile(r"n\d{8}", re.ASCII)
# words for the same class differ a little between publishers
_AGREEMENT = 0.9


def outputs_by_name(names: Sequence[str], class_names: Sequence[str], kind: str) -> list[int]:
    """Outputs of classes, for a model whose outputs have names: the same name, or the same class of ImageNet.

    The latter by synset, or by number where the dataset's classes are 0 to 999, all of them, as ImageNet-V2's are.

    Args:
        names: classes of the dataset.
        class_names: of all outputs, in order.
        kind: what a message calls a class.

    Raises:
        DataError: naming a class that no output has, or more than one.
    """
    if list(names) == list(class_names):
        return list(range(len(names)))
    outputs = {name: number for number, name in enumerate(class_names)}
    strangers = sorted(set(names) - set(outputs))
    if strangers:
        ours, theirs = _synsets(names), _synsets(class_names)
        if ours is not None and theirs is not None:
            by_synset = {synset: number for number, synset in enumerate(theirs)}
            strangers = sorted(name for name, synset in zip(names, ours, strict=True) if synset not in by_synset)
            if not strangers:
                return [by_synset[synset] for synset in ours]
        hint = "rename or remove it"
        if are_numbers(names) and (of_imagenet := imagenet_outputs(class_names, len(class_names))) is not None:
            if (gap := gap_in_numbers(names, IMAGENET_CLASSES)) is None:
                return [of_imagenet[int(name)] for name in names]
            hint = f"numbers are ImageNet's classes where all of 0 to {IMAGENET_CLASSES - 1} are there, and {gap}"
        raise DataError(
            f"{kind} {strangers[0]!r}, which is none of the {len(class_names)} classes "
            f"of the training data ({', '.join(class_names[:3])}, ...); {hint}"
        )
    repeated = sorted(name for name, count in Counter(class_names).items() if count > 1 and name in set(names))
    if repeated:
        raise DataError(f"{kind} {repeated[0]!r}, which more than one output of the model is called")
    return [outputs[name] for name in names]


def names_of_outputs(names: Sequence[str], num_classes: int) -> list[str] | None:
    """Names for the outputs of a model that has none, or None where they would be guessed.

    They are ImageNet's synsets if the dataset's classes are synsets, and the model has as many outputs as one of
    ImageNet's releases has classes; or numbers, if the classes are 0, 1, ... to the last output, with or without
    leading zeros.

    Args:
        names: classes of the dataset.
        num_classes: outputs of the model.
    """
    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset is not None and _synsets(names) is not None:
        return ImageNetInfo(subset).label_names()
    if are_numbers(names) and gap_in_numbers(names, num_classes) is None:
        return sorted(names, key=int)
    return None


def imagenet_outputs(class_names: Sequence[str] | None, num_classes: int) -> list[int] | None:
    """A model's output for each of ImageNet's 1000 classes, in ImageNet's order; None where it is not certain.

    Args:
        class_names: of its outputs: synsets in any order, words in ImageNet's, or numbers; None if they have no names,
            and then they are in ImageNet's order.
        num_classes: how many outputs it has.
    """
    if num_classes != IMAGENET_CLASSES:
        return None
    if class_names is None:
        return list(range(num_classes))
    if are_numbers(class_names) and gap_in_numbers(class_names, num_classes) is None:
        return sorted(range(num_classes), key=lambda output: int(class_names[output]))
    synsets, imagenet = _synsets(class_names), ImageNetInfo().label_names()
    if synsets is None or set(synsets) != set(imagenet):
        return None
    by_synset = {synset: output for output, synset in enumerate(synsets)}
    return [by_synset[synset] for synset in imagenet]


def described(names: Sequence[str]) -> list[str]:
    """Names for people: ImageNet's first word for each class, if these are its synsets; other names as they are."""
    imagenet = ImageNetInfo()
    synsets = _synsets(names)
    words = dict(zip(imagenet.label_names(), imagenet.label_descriptions(), strict=True))
    if synsets is None or not words.keys() >= set(synsets):
        return list(names)
    return [words[synset].partition(",")[0] for synset in synsets]


def are_numbers(names: Sequence[str]) -> bool:
    """Whether all classes are called by a number, with or without leading zeros."""
    return all(name.isascii() and name.isdecimal() for name in names)


def gap_in_numbers(names: Sequence[str], num_classes: int) -> str | None:
    """Why numbers are not 0 to the last of so many classes, each once, in one clause; None if they are."""
    counts = Counter(map(int, names))
    if beyond := sorted(number for number in counts if number >= num_classes):
        return f"{beyond[0]} is none of them"
    if twice := sorted(number for number, count in counts.items() if count > 1):
        return f"{twice[0]} is there twice"
    missing = [number for number in range(num_classes) if number not in counts]
    if not missing:
        return None
    return f"{missing[0]} {f'and {len(missing) - 1} more are' if missing[1:] else 'is'} missing"


def _synsets(names: Sequence[str]) -> list[str] | None:
    """Classes as synsets, if they are some, or the words for ImageNet's 1000 classes in its order."""
    if all(_SYNSET.fullmatch(name) for name in names):
        return list(names)
    imagenet = ImageNetInfo()
    if len(names) != imagenet.num_classes():
        return None
    synonyms = [{word.strip().lower() for word in text.split(",")} for text in imagenet.label_descriptions()]
    agree = sum(name.split(",")[0].strip().lower() in words for name, words in zip(names, synonyms, strict=True))
    return list(imagenet.label_names()) if agree >= _AGREEMENT * len(names) else None
