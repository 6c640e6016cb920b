"""Which output of a model a class of a dataset belongs to. It is known, or refused; never guessed."""

import re
from collections import Counter
from collections.abc import Sequence

from timm.data import ImageNetInfo, infer_imagenet_subset

from visionmlp.errors import DataError

_SYNSET = re.compile(r"n\d{8}", re.ASCII)
# words for the same class differ a little between publishers
_AGREEMENT = 0.9


def outputs_by_name(names: Sequence[str], class_names: Sequence[str], kind: str) -> list[int]:
    """Outputs of classes, for a model whose outputs have names: the same name, or the same ImageNet synset.

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
        raise DataError(
            f"{kind} {strangers[0]!r}, which is none of the {len(class_names)} classes "
            f"of the training data ({', '.join(class_names[:3])}, ...); rename or remove it"
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
    if len(names) == num_classes and all(name.isascii() and name.isdecimal() for name in names):
        by_number = sorted(names, key=int)
        if [int(name) for name in by_number] == list(range(num_classes)):
            return by_number
    return None


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
