"""`python -m fsae.report`: see `fsae.commands.report`."""

import sys

from fsae.commands.report import main

if __name__ == "__main__":
    sys.exit(main())
