"""`python -m fsae.publish`: see `fsae.commands.publish`."""

import sys

from fsae.commands.publish import main

if __name__ == "__main__":
    sys.exit(main())
