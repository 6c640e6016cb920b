"""Entry point: finds the command, parses its options, runs it, and turns every expected failure into one line."""

import io
import os
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence

from jsonargparse import ArgumentParser, Namespace

from visionmlp.cli.commands import COMMANDS
from visionmlp.cli.parser import UsageError, build_parser, config_first, nearest, usage_error
from visionmlp.errors import VisionMLPError

DESCRIPTION = """Vision MLPs: nine families of the literature. Train them, re-parameterise them, measure and ship them.

A model is given as a name ("visionmlp models" lists them), a run folder of "visionmlp train", or a checkpoint file."""

EPILOG = """"visionmlp COMMAND --help" explains a command, with examples; "visionmlp demo" shows the whole story.
A failure is one line on standard error and exit code 2; --debug shows its traceback."""

FAILED = 2
INTERRUPTED = 130
BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after ``visionmlp``; default: those of this process.

    Returns:
        Exit code: 0 for success, 2 for a failure that one line on standard error explains, 130 if interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a file name need not be valid in any encoding; standard error does this by itself
        sys.stdout.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        if not debug:
            # of libraries; our own tell the user something
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", module=r"visionmlp\.")
            warnings.showwarning = show_warning
        try:
            code = run(words)
            sys.stdout.flush()
            return code
        except KeyboardInterrupt as interrupt:  # training says what is saved and how to go on
            return fail(one_line(interrupt) or "interrupted", INTERRUPTED)
        except BrokenPipeError:
            # the reader has gone; without this the interpreter complains when it flushes at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except (VisionMLPError, UsageError, OSError) as error:
            if debug:
                raise
            return fail(f"error: {one_line(error)}", FAILED)


def run(words: Sequence[str]) -> int:
    """Dispatch to the command that the first word names."""
    if words and words[0] in COMMANDS:
        command = COMMANDS[words[0]]
        parser = build_parser(f"visionmlp {words[0]}", description=command.description, epilog=command.epilog)
        command.add_options(parser, words[1:])
        namespace = parse(parser, config_first(words[1:]))
        return 0 if namespace is None else command.run(namespace)
    if words and not words[0].startswith("-"):
        hint = nearest(words[0], COMMANDS) or f"there are {', '.join(COMMANDS)}"
        raise UsageError(f"unknown command {words[0]!r}; {hint}")
    parser = build_parser("visionmlp", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subcommands(required=False, dest="command", title="commands", description=None)
    for name, command in COMMANDS.items():
        commands.add_subcommand(name, build_parser(name, description=command.description), help=command.summary)
    namespace = parse(parser, words)
    if namespace is None:
        return 0
    if namespace.version:
        from importlib.metadata import version

        sys.stdout.write(f"visionmlp {version('visionmlp')}\n")
    else:
        parser.print_help()
    return 0


def parse(parser: ArgumentParser, words: Sequence[str]) -> Namespace | None:
    """The parsed arguments, or None when the parser has printed its help or config."""
    try:
        return parser.parse_args(list(words))
    except ArgumentError as error:
        raise usage_error(error, parser) from error
    except SystemExit:
        return None


def one_line(error: BaseException) -> str:
    """An error's message without line breaks; an OSError's with the file first."""
    if isinstance(error, OSError) and not isinstance(error, VisionMLPError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


def show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """One line, without the place in the code."""
    sys.stderr.write(f"warning: {' '.join(str(message).split())}\n")


def fail(line: str, code: int) -> int:
    """Print the one line."""
    sys.stderr.write(line + "\n")
    return code
