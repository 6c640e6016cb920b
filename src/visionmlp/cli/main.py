"""Finds the command, parses its options, runs it, and turns every expected failure into one line."""

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence

import visionmlp
from visionmlp.cli.command import Command
from visionmlp.cli.commands import COMMANDS
from visionmlp.cli.usage import HelpFormatter, UsageError, nearest, unexpected
from visionmlp.engine.started import first_is_silent, rank
from visionmlp.errors import Note, VisionMLPError
from visionmlp.memory import keep_freed_memory

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
    if sys.stdout is None:
        return fail("error: standard output is closed; send it to a file, or to /dev/null", FAILED)
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
        return run_command(words[0], COMMANDS[words[0]], words[1:])
    if words and not words[0].startswith("-"):
        hint = nearest(words[0], COMMANDS) or f"there are {', '.join(COMMANDS)}"
        raise UsageError(f"unknown command {words[0]!r}; {hint}")
    parser = argparse.ArgumentParser(
        "visionmlp", description=DESCRIPTION, epilog=EPILOG, formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(title="commands", dest="command")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.summary)
    known = {"-h", "--help", "--version"}
    for word in words:
        if word not in known:
            raise unexpected(word, known, "visionmlp")
    if list(words) == ["--version"]:
        sys.stdout.write(f"visionmlp {visionmlp.__version__}\n")
    else:
        parser.print_help()
    return 0


def run_command(name: str, command: Command, words: Sequence[str]) -> int:
    """Parse the words behind a command's name and run it."""
    if not {"-h", "--help"} & set(words):
        command.check(words)

    from visionmlp.cli.parser import build_parser, config_first, parse

    parser = build_parser(f"visionmlp {name}", description=command.description, epilog=command.epilog)
    command.add_options(parser, words)
    namespace = parse(parser, config_first(command.arrange(words)))
    if namespace is None:
        return 0
    keep_freed_memory()
    return command.run(namespace)


def one_line(error: BaseException) -> str:
    """An error's message without line breaks; an OSError's with the file first."""
    if isinstance(error, OSError) and not isinstance(error, VisionMLPError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


def show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """One line, without the place in the code."""
    kind = "note" if issubclass(category, Note) else "warning"
    sys.stderr.write(f"{kind}: {' '.join(str(message).split())}\n")


def fail(line: str, code: int) -> int:
    """Print the one line; of processes that train together the first one does, but for what it does not know."""
    if rank() == 0 or first_is_silent():
        sys.stderr.write(line + "\n")
    return code
