"""`python -m fsae.sync`: see `fsae.commands.sync`."""

import sys

from fsae.commands.sync import main

if __name__ == "__main__":
    sys.exit(main())
