"""`python -m fsae.resume`: see `fsae.commands.resume`."""

import sys

from fsae.commands.resume import main

if __name__ == "__main__":
    sys.exit(main())
