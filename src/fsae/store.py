"""`python -m fsae.store`: see `fsae.commands.store`."""

import sys

from fsae.commands.store import main

if __name__ == "__main__":
    sys.exit(main())
