"""`python -m fsae.steer`: see `fsae.commands.steer`."""

import sys

from fsae.commands.steer import main

if __name__ == "__main__":
    sys.exit(main())
