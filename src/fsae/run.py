"""`python -m fsae.run`, the same as the console script `fsae`: see `fsae.commands.run`."""

from fsae.__main__ import main

if __name__ == "__main__":
    main()
