"""Words of messages."""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, as in "1 job" and "2 jobs"."""
    return f"{number:,} {noun if number == 1 else f'{noun}s'}"
