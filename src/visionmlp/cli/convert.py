"""``visionmlp convert``."""

import sys

from visionmlp.cli.command import plain_command
from visionmlp.cli.options import ConvertOptions
from visionmlp.cli.output import say
from visionmlp.cli.usage import UsageError


def convert(options: ConvertOptions) -> int:
    """Write the weights in the other format."""
    from visionmlp.deploy.convert import convert_from_official, convert_to_official

    if options.to == "official":
        if options.ema or options.img_size is not None or options.checkpoint_prefix is not None:
            raise UsageError(
                "--ema, --img-size and --checkpoint-prefix say how to read the authors' file; "
                "leave them out with --to official"
            )
        model, lost = convert_to_official(options.source, options.output, name=options.model, force=options.force)
        if lost:
            settings = ", ".join(f"{option}={getattr(model.config, option)!r}" for option in lost)
            say(f"note: the authors' files hold weights only; give their code {settings}")
    else:
        if options.model is None:
            raise UsageError("--model must be given: the authors' files do not say which model they hold")
        if options.img_size is not None and len(options.img_size) not in (1, 2):
            raise UsageError(f"--img-size takes a side, or height and width, got {len(options.img_size)} numbers")
        model = convert_from_official(
            options.source,
            options.model,
            options.output,
            img_size=(options.img_size[0], options.img_size[-1]) if options.img_size else None,
            prefix=options.checkpoint_prefix,
            ema=options.ema,
            force=options.force,
        )
    count = sum(parameter.numel() for parameter in model.parameters())
    sys.stdout.write(f"{model.name}, {count:,} parameters\nwrote {options.output}\n")
    return 0


CONVERT = plain_command(
    "convert",
    ConvertOptions,
    convert,
    summary="the authors' weights into a checkpoint of ours, and back",
    description=(
        "Read the authors' file and write a checkpoint that says which model it holds; or, with --to official,\n"
        "write weights as the authors' code reads them. No value changes: there and back gives the same tensors."
    ),
    examples=[
        "convert resmlp_24_dist.pth --model resmlp_s24 --output resmlp_s24.safetensors",
        "convert checkpoint.pth --model cyclemlp_b1 --ema --output b1.safetensors",
        "convert runs/digits --to official --output digits.pth",
    ],
)
