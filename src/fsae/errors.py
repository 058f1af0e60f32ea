"""Errors of other libraries, in the one line that our messages quote."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's class if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
