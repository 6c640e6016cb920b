"""Tokens a second of decoding, with what earlier steps left and without, of ResMLP and the Transformer.

    python benchmarks/translation_speed.py --threads 2

Greedy decoding of a batch of sentences of each length, of which every step is done: fresh weights, forced length. The
contenders take turns; medians. Writes the part "speed" of docs/results/translation.md, between its markers, and its
rows as CSV beside it.
"""

import argparse
import csv
import itertools
import statistics
import time
from pathlib import Path

import torch

from runs import fill_part
from visionmlp.measure.timing import describe_machine
from visionmlp.models.translator import EOS, Memory, Translator, create_translator

DOCUMENT = Path(__file__).parents[1] / "docs" / "results" / "translation.md"
FAMILIES = {"ResMLP": "resmlp_seq2seq", "Transformer": "transformer_seq2seq"}
VOCABULARY = 8000


@torch.inference_mode()
def with_state(network: Translator, memory: Memory, length: int) -> None:
    state, token = network.start(memory), torch.full((len(memory.mask),), EOS)
    for _ in range(length):
        logits, state = network.step(token, state)
        token = logits[:, 4:].argmax(1) + 4


@torch.inference_mode()
def recomputed(network: Translator, memory: Memory, length: int) -> None:
    tokens = torch.full((len(memory.mask), 1), EOS)
    for _ in range(length):
        logits = network.decode(tokens, memory)[:, -1]
        tokens = torch.cat([tokens, logits[:, 4:].argmax(1, keepdim=True) + 4], dim=1)


WAYS = {"steps": with_state, "recomputed": recomputed}


def measured(size: str, length: int, batch: int, rounds: int) -> dict[tuple[str, str], float]:
    """Tokens a second by family and way."""
    networks = {
        family: create_translator(f"{name}_{size}", vocab_size=VOCABULARY, max_length=max(256, length)).eval()
        for family, name in FAMILIES.items()
    }
    source = torch.randint(4, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(0))
    source[:, -1] = EOS
    with torch.inference_mode():
        memories = {family: network.encode(source) for family, network in networks.items()}
    seconds: dict[tuple[str, str], list[float]] = {contender: [] for contender in itertools.product(FAMILIES, WAYS)}
    for _ in range(rounds + 1):  # the first warms up
        for (family, way), taken in seconds.items():
            start = time.perf_counter()
            WAYS[way](networks[family], memories[family], length)
            taken.append(time.perf_counter() - start)
    return {contender: batch * length / statistics.median(taken[1:]) for contender, taken in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="6", help="of the presets: 6, 12 or small")
    parser.add_argument("--lengths", type=int, nargs="*", default=[32, 128, 256])
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 16], help="sentences at a time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows, lines = [], []
    for batch, length in itertools.product(args.batch, args.lengths):
        speeds = measured(args.size, length, batch, args.rounds)
        rows += [
            {"family": family, "way": way, "length": length, "batch_size": batch, "tokens_per_second": round(speed, 1)}
            for (family, way), speed in speeds.items()
        ]
        own, other = speeds["ResMLP", "steps"], speeds["Transformer", "steps"]
        lines.append(
            f"| {batch} | {length} | {own:.0f} | {own / speeds['ResMLP', 'recomputed']:.1f} | {other:.0f} "
            f"| {other / speeds['Transformer', 'recomputed']:.1f} | {own / other:.2f} |"
        )
        print(lines[-1], flush=True)
    table = DOCUMENT.with_name("translation_speed.csv")
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    fill_part(
        DOCUMENT,
        "speed",
        TEXT.format(
            machine=describe_machine(torch.device("cpu")),
            size=args.size,
            rows="\n".join(lines),
            csv=table.name,
            threads=args.threads,
            rounds=args.rounds,
        ),
    )


TEXT = """{machine}. Presets `{size}`, fresh weights, float32, greedy, every sentence decoded to the length; source of
the same length. "times recomputing" compares with computing the whole prefix in each step, "ratio" ResMLP with the
Transformer.

| sentences | length | ResMLP, tokens/s | times recomputing | Transformer, tokens/s | times recomputing | ratio |
|---|---|---|---|---|---|---|
{rows}

Made from [{csv}]({csv}) by `python benchmarks/translation_speed.py --threads {threads} --size {size} --rounds
{rounds}`.
"""


if __name__ == "__main__":
    main()
