"""The command line: ``visionmlp COMMAND --help`` explains each command.

Nothing here or in `options` imports torch; a command imports what it needs when it runs.
"""

from visionmlp.cli.main import main

__all__ = ["main"]
