"""The console script `fsae`, the same as `python -m fsae.run`; handles signals before slow imports."""

from fsae.console import leave_on_signals


def main() -> None:
    """Run `fsae.commands.run`."""
    leave_on_signals()
    from fsae.commands.run import main as run

    run()


if __name__ == "__main__":
    main()
