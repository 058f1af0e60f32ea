"""Settings that decide no number: where and how a run is done, recorded and searched."""

# A setting by its dotted key, or a group with everything in it.
BOOKKEEPING = (
    "paths",
    "tracking",
    "search",
    # It decides numbers only by way of eval.
    "suite",
    "source.cache",
    "source.cache_gb",
    "source.also",
    "trainer.checkpoint_seconds",
)


def is_bookkeeping(key: str) -> bool:
    """Return whether a setting (a dotted key) changes no number.

    Such a setting neither names a run's folder nor makes a checkpoint foreign, and no report compares its values.
    """
    return f"{key}.".startswith(tuple(f"{each}." for each in BOOKKEEPING))
