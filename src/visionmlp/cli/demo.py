"""``visionmlp demo``."""

from visionmlp.cli.command import plain_command
from visionmlp.cli.options import DemoOptions


def demo(options: DemoOptions) -> int:
    """Run the demo."""
    from visionmlp.recipes.demo import run

    run(options.output)
    return 0


DEMO = plain_command(
    "demo",
    DemoOptions,
    demo,
    summary="the whole story on real digits, in three minutes",
    description="Train a small RepMLPNet on handwritten digits, deploy it, compare speed, export it, draw figures.",
    examples=["demo", "demo --output my_demo"],
)
