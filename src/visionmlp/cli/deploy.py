"""``visionmlp deploy``."""

import sys
from pathlib import Path

from visionmlp.cli.command import plain_command
from visionmlp.cli.options import DeployOptions
from visionmlp.cli.output import console, note_precision


def deploy(options: DeployOptions) -> int:
    """Write the deploy form and print its certificate."""
    from visionmlp.deploy.certificate import certificate_table, deploy
    from visionmlp.tasks.loading import load

    model, info = load(options)
    output = options.output or _deploy_output(options)
    certificate = deploy(
        model, info, output, force=options.force, batch_size=options.batch_size, seconds=options.seconds
    )
    note_precision(model)
    console().print(certificate_table(certificate))
    sys.stdout.write(f"wrote {output}\n")
    return 0


def _deploy_output(options: DeployOptions) -> Path:
    source = options.checkpoint or Path(options.model)
    if source.is_dir():
        return source / "deploy.safetensors"
    return source.with_name(f"{source.stem}-deploy.safetensors")


DEPLOY = plain_command(
    "deploy",
    DeployOptions,
    deploy,
    summary="re-parameterise a trained model, with a certificate",
    description=(
        "Write the deploy form of a model: its branches and norms folded into plain matrix products.\n"
        "It is written only if both forms agree on random images: to 1e-10 of the largest output in float64,\n"
        "with the real weights and with random weights and norm statistics, and to 1e-5 in float32\n"
        "(or four times what the training form itself loses to rounding, if that is more)."
    ),
    examples=[
        "deploy runs/digits",
        "deploy repmlpnet_t224 --checkpoint RepMLPNet-T224.pth --output t224.safetensors",
    ],
)
