"""The command line: ``visionmlp COMMAND --help`` explains each command.

Nothing here imports torch before a command does its work; `visionmlp_command` starts it.
"""

from visionmlp.cli.main import main

__all__ = ["main"]
