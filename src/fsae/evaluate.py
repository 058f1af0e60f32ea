"""`python -m fsae.evaluate`: see `fsae.commands.evaluate`."""

import sys

from fsae.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
