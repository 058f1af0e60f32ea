"""`python -m fsae.latents`: see `fsae.commands.latents`."""

import sys

from fsae.commands.latents import main

if __name__ == "__main__":
    sys.exit(main())
