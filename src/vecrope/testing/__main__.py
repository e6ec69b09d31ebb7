"""Run the property suite from the command line."""

import sys

from vecrope.testing.command import main

if __name__ == "__main__":
    sys.exit(main())
