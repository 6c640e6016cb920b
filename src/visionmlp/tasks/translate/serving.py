"""``visionmlp translate``: what its options say, done."""

from collections.abc import Iterator
from pathlib import Path

import torch

from visionmlp.deploy.runtimes import check_threads
from visionmlp.deploy.translator import is_exported_translator, open_exported_translator
from visionmlp.errors import InvalidConfig
from visionmlp.measure.timing import open_device
from visionmlp.models.translator_files import load_translator
from visionmlp.tasks.translate.decoding import Network, Search
from visionmlp.tasks.translate.lines import STANDARD_INPUT, Lines
from visionmlp.tasks.translate.options import TranslateOptions
from visionmlp.tasks.translate.tokenizer import Tokenizer
from visionmlp.tasks.translate.translate import LineTranslator, Sampling, TranslatedLine

CHUNK = 1000


def translate(options: TranslateOptions, *, interactive: bool = False) -> Iterator[TranslatedLine]:
    """Translations of all lines, in their order.

    Files are looked through before the first line is translated, so that what would stop the work does so at once;
    what comes through a pipe is read once.

    Args:
        options: see there.
        interactive: somebody waits for each line: the default of ``chunk`` is 1.

    Raises:
        VisionMLPError: see `LineTranslator`, `Lines` and `open_translator`.
    """
    search, sampling = _search(options), _sampling(options)
    files = options.files or (STANDARD_INPUT,)
    if options.prefix is not None and str(options.prefix) in files and not Path(options.prefix).is_file():
        raise InvalidConfig(f"lines and their prefixes cannot both be read from {options.prefix}; put one in a file")
    sources = Lines(files, options.invalid_utf8)
    prefixes = None if options.prefix is None else Lines((str(options.prefix),), options.invalid_utf8)
    for lines in (sources, prefixes):
        if lines is not None:
            lines.check()
    device = open_device(options.device)
    network, tokenizer = open_translator(options, device)
    translator = LineTranslator(
        network=network,
        tokenizer=tokenizer,
        search=search,
        sampling=sampling,
        too_long=options.too_long,
        batch_size=options.batch_size,
        chunk=options.chunk if options.chunk is not None else 1 if interactive else CHUNK,
        device=device,
    )
    if sources.again and (prefixes is None or prefixes.again):
        for _ in translator.check(sources, prefixes=prefixes, place=sources.place):
            pass
    yield from translator(sources, prefixes=prefixes, place=sources.place)


def open_translator(options: TranslateOptions, device: torch.device) -> tuple[Network, Tokenizer]:
    """The network that the options name, in evaluation mode, and its tokenizer.

    Raises:
        CheckpointError: if there is none.
        InvalidConfig: for a device or dtype that exported networks do not have.
        MissingExtra: without sentencepiece, or ONNX Runtime.
    """
    check_threads(options.threads)
    path = Path(options.model)
    if is_exported_translator(path):
        if device.type != "cpu" or options.dtype != "float32":
            raise InvalidConfig("exported models run on cpu in float32; leave out --device and --dtype")
        exported = open_exported_translator(path, threads=options.threads)
        return exported, Tokenizer.fitting(exported.info.tokenizer, exported.config.vocab_size, str(path))
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    network, info = load_translator(path)
    # whatever the file is in: a search compares sums of log-probabilities, which half precision cannot tell apart
    dtype = torch.float64 if options.dtype == "float64" else torch.float32
    tokenizer = Tokenizer.fitting(info.tokenizer, network.config.vocab_size, str(path))
    return network.to(device=device, dtype=dtype), tokenizer


def _search(options: TranslateOptions) -> Search:
    if options.sample:
        given = {"beam": options.beam, "n-best": options.n_best, "stopping": options.stopping}
        for name, value in given.items():
            if value is not None:
                raise InvalidConfig(f"--sample draws one translation of each line; leave out --{name}")
        if options.prefix is not None:
            raise InvalidConfig("--sample takes no --prefix; leave out one of the two")
    n_best = 1 if options.n_best is None else options.n_best
    if n_best > 1 and not options.json:
        raise InvalidConfig("text has one translation a line; give --json for --n-best above 1")
    return Search(
        beam=Search.beam if options.beam is None else options.beam,
        n_best=n_best,
        length_penalty=options.length_penalty,
        stopping=options.stopping or Search.stopping,
        max_length=options.max_length,
        max_length_ratio=options.max_length_ratio,
        min_length=options.min_length,
    )


def _sampling(options: TranslateOptions) -> Sampling | None:
    given = {"seed": options.seed, "temperature": options.temperature, "top_k": options.top_k}
    fields = {name: value for name, value in given.items() if value is not None}
    if options.sample:
        return Sampling(**fields)  # type: ignore[arg-type]
    for name in fields:
        raise InvalidConfig(f"--{name.replace('_', '-')} is about drawn translations; give --sample, or leave it out")
    return None
