"""``python -m visionmlp``."""

import sys

from visionmlp.cli import main

if __name__ == "__main__":
    sys.exit(main())
