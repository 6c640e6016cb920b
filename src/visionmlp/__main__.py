"""``python -m visionmlp``."""

import sys

from visionmlp_command import main

if __name__ == "__main__":
    sys.exit(main())
