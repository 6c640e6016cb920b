"""The input pipeline of a detection run."""

from collections.abc import Sequence

from visionmlp.bench.input_pipeline import InputBenchmark
from visionmlp.tasks.detect.config import DetectConfig
from visionmlp.tasks.detect.run import prepared
from visionmlp.tasks.input_bench import measure_prepared


def measure_input(config: DetectConfig, *, num_workers: Sequence[int], steps: int) -> InputBenchmark:
    """See `measure_prepared`.

    Height and width are the short and the long side that evaluation allows; those of training images differ.
    """
    return measure_prepared(
        config,
        prepared,
        lambda network: (network.options["min_size"][-1], network.options["max_size"]),
        num_workers=num_workers,
        steps=steps,
    )
