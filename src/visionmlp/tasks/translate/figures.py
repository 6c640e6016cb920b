"""What a translation run shows: curves, sentences, and its matrices over positions."""

from pathlib import Path

import torch
from torch import Tensor, nn

from visionmlp.engine.run_folder import RunFolder, best_row
from visionmlp.files import write_beside, writing
from visionmlp.layers.memory_attention import attention_weights, keys_values
from visionmlp.models.resmlp_seq2seq import ResMLPSeq2Seq
from visionmlp.models.translator import EOS, Translator
from visionmlp.models.translator_files import load_translator
from visionmlp.report.page import write_page
from visionmlp.report.plots import attention_maps, influence_maps, learning_curves
from visionmlp.tasks.translate.data import Corpus
from visionmlp.tasks.translate.lines import one_line
from visionmlp.tasks.translate.metrics import TranslationMetric
from visionmlp.tasks.translate.tokenizer import Tokenizer

SAMPLES = "samples"
"""Folder of translations in a run."""
_SHOWN_POSITIONS = 32


def write_samples(folder: Path, step: int, corpus: Corpus, metric: TranslationMetric, count: int) -> None:
    """Write source, reference and translation of some sentences, evenly spaced, as text.

    Raises:
        RunFolderError: if the file cannot be written.
    """
    folder = folder / SAMPLES
    with writing(folder):
        folder.mkdir(exist_ok=True)
    count = min(count, len(corpus))
    numbers = [(2 * place + 1) * len(corpus) // (2 * count) for place in range(count)]
    lines = [
        f"{number + 1}\nsource      {one_line(corpus.source[number])}\n"
        f"reference   {one_line(corpus.target[number])}\n"
        f"translation {metric.hypotheses.items[number]}\n"
        for number in numbers
        if number in metric.hypotheses.items
    ]
    write_beside(_samples_of(folder, step), "\n".join(lines).encode())


def _samples_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:07d}.txt"


def position_maps(network: Translator) -> dict[str, Tensor]:
    """What the first positions take from each other in a ResMLP's first and last layers, absolute values by title."""
    if not isinstance(network, ResMLPSeq2Seq):
        return {}
    size = min(_SHOWN_POSITIONS, network.config.max_length)
    layers = network.layers()
    depth = network.config.depth
    chosen = {"encoder 1": 0, f"encoder {depth}": depth - 1, "decoder 1": depth, f"decoder {depth}": 2 * depth - 1}
    return {title: layers[number].mixing.matrix(size).detach().abs() for title, number in chosen.items()}


@torch.inference_mode()
def cross_attention(network: Translator, source: Tensor, target: Tensor) -> list[Tensor]:
    """What each layer of the decoder takes from the source, mean over heads.

    Args:
        network: in evaluation.
        source: (1, S), ended.
        target: (1, T), begun with the end symbol.

    Returns:
        (T, S) for each layer, rows of which sum to one.
    """
    asked: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, _: object, output: Tensor) -> None:
        asked[module] = output

    layers = network.cross_attentions()
    hooks = [asking.register_forward_hook(keep) for asking, _ in layers]
    try:
        memory = network.encode(source)
        network.decode(target, memory)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        attention_weights(attention, asked[asking], keys_values(attention, memory.states), memory.mask)[0].mean(0)
        for asking, attention in layers
    ]


def _attention_figure(network: Translator, tokenizer: Tokenizer, source: str, translation: str, path: Path) -> Path:
    """The first and the last layer's, of one sentence."""
    most = min(_SHOWN_POSITIONS, network.config.max_length) - 1
    ids, said = ([*tokenizer.encode(text)[:most], EOS] for text in (source, translation))
    maps = cross_attention(network.eval(), torch.tensor([ids]), torch.tensor([[EOS, *said[:-1]]]))
    names = {f"decoder {number + 1}": maps[number] for number in (0, len(maps) - 1)}
    return attention_maps(names, path, rows=tokenizer.pieces(said), columns=tokenizer.pieces(ids))


def write_report(folder: Path) -> Path:
    """Write the figures and ``report.html`` into the folder of a run, from what lies in it.

    Raises:
        RunFolderError: if something cannot be written.
        MissingExtra: if matplotlib is not installed.
    """
    run = RunFolder(folder)
    config, training, evaluations = run.read_config(), run.train.rows(), run.metrics.rows()
    figures = {
        "Learning curves": learning_curves(
            training, evaluations, folder / "curves.png", metric="bleu", title="BLEU, held out"
        )
    }
    network, info = load_translator(folder)
    if maps := position_maps(network):
        figures["What positions take from each other"] = influence_maps(maps, folder / "positions.png")
    best = best_row(evaluations, "bleu")
    samples = _samples_of(folder / SAMPLES, int(best["step"]))
    tables = {}
    if samples.is_file():
        blocks = samples.read_text().strip().split("\n\n")
        tables["Translations at the best step"] = [
            {
                name: line.partition(name)[2].strip()
                for line in block.splitlines()[1:]
                for name in ("source", "reference", "translation")
                if line.startswith(name)
            }
            for block in blocks
        ]
        first = next(iter(tables.values()))[0]
        figures["What the translation takes from the source"] = _attention_figure(
            network, Tokenizer(info.tokenizer), first["source"], first["translation"], folder / "attention.png"
        )
    return write_page(
        folder,
        title=f"{config['model']}, {config['source']} to {config['target']}, {config['data']}",
        numbers={
            "BLEU": f"{best['bleu']:.2f}",
            "chrF": f"{best['chrf']:.2f}",
            "perplexity": f"{best['perplexity']:.2f}",
            "best step": f"{best['step']:.0f} of {evaluations[-1]['step']:.0f}",
        },
        figures=figures,
        tables=tables,
    )
