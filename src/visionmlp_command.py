"""Starts the command ``visionmlp``, of which `visionmlp` knows by this module that it need not register with timm."""

import sys


def main() -> int:
    """Run the command line of this process; an interrupt while Python imports is no traceback either."""
    try:
        from visionmlp.cli import main

        return main()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
