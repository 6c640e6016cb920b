"""The input pipeline of a segmentation run."""

from collections.abc import Sequence

from visionmlp.bench.input_pipeline import InputBenchmark
from visionmlp.tasks.input_bench import measure_prepared
from visionmlp.tasks.segment.building import crop_size_of
from visionmlp.tasks.segment.config import SegmentConfig
from visionmlp.tasks.segment.run import prepared


def measure_input(config: SegmentConfig, *, num_workers: Sequence[int], steps: int) -> InputBenchmark:
    """See `measure_prepared`."""
    return measure_prepared(
        config,
        prepared,
        lambda network: crop_size_of(config, network.backbone),
        num_workers=num_workers,
        steps=steps,
    )
