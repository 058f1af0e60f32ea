"""Splits of labelled rows into training and test rows, drawn at random within each class, or by groups of rows."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True, eq=False)
class Split:
    """Rows to fit a probe to, and rows to test it on.

    Attributes:
        train: training rows, in random order.
        test: test rows, in random order; no training row is among them.
        labels: of the training rows, 0 or 1, of which some may be wrong on purpose.
    """

    train: Int[np.ndarray, " train"]
    test: Int[np.ndarray, " test"]
    labels: Int[np.ndarray, " train"]

    def first(self, count: int) -> "Split":
        """Return the split with fewer training rows, as many of each class (one more of class 1 if odd)."""
        wanted = {1: (count + 1) // 2, 0: count // 2}
        kept = np.sort(np.concatenate([np.flatnonzero(self.labels == label)[:most] for label, most in wanted.items()]))
        return replace(self, train=self.train[kept], labels=self.labels[kept])

    def mislabelled(self, share: float, seed: int) -> "Split":
        """Return the split with the labels of a share of the training rows exchanged."""
        wrong = np.random.default_rng(seed).permutation(len(self.labels))[: int(share * len(self.labels))]
        labels = self.labels.copy()
        labels[wrong] = 1 - labels[wrong]
        return replace(self, labels=labels)


def split(labels: Int[np.ndarray, " rows"], train: int, test: int, seed: int, share: float = 0.5) -> Split:
    """Return a split with the same share of class 1 among training and test rows.

    Args:
        labels: 0 or 1.
        train: training rows.
        test: test rows. If there are too few rows of a class, both parts are smaller in proportion.
        seed: of the draw.
        share: of class 1.

    Raises:
        ValueError: a class has too few rows for one in each part.
    """
    generator = np.random.default_rng(seed)
    classes = [generator.permutation(np.flatnonzero(labels == label)) for label in (0, 1)]
    shares = (1 - share, share)
    there = min(len(rows) / own for rows, own in zip(classes, shares, strict=True))
    scale = min(1.0, there / (train + test))
    parts: list[list[np.ndarray]] = [[], []]
    for rows, own in zip(classes, shares, strict=True):
        counts = [int(own * scale * size + 0.5) for size in (train, test)]
        counts[1] = min(counts[1], len(rows) - counts[0])
        if min(counts) < 1:
            raise ValueError(
                f"the classes have {len(classes[0])} and {len(classes[1])} rows, too few for training and test rows of "
                f"both with a share of {share:g} of the second class"
            )
        parts[0].append(rows[: counts[0]])
        parts[1].append(rows[counts[0] : sum(counts)])
    fitted, tested = (generator.permutation(np.concatenate(each)) for each in parts)
    return Split(fitted, tested, labels[fitted])


def split_by_group(
    labels: Int[np.ndarray, " rows"],
    groups: Int[np.ndarray, " rows"],
    train: int,
    test: int,
    seed: int,
    share: float = 0.5,
) -> Split:
    """Return a split like that of `split`, in which no group has rows in both parts.

    Groups are drawn at random for the test rows until they have as large a part of all rows as is wanted.

    Args:
        labels: 0 or 1.
        groups: the group of each row.
        train, test: rows. If a class has too few rows in a part, both parts are smaller in proportion.
        seed: of the draw.
        share: of class 1.

    Raises:
        ValueError: a class has no row in a part.
    """
    generator = np.random.default_rng(seed)
    names, sizes = np.unique(groups, return_counts=True)
    order = generator.permutation(len(names))
    before = sizes[order].cumsum() - sizes[order]
    is_tested = np.isin(groups, names[order[before < len(labels) * test / (train + test)]])
    shares = (1 - share, share)
    pools = [
        [generator.permutation(np.flatnonzero((is_tested == tested) & (labels == label))) for label in (0, 1)]
        for tested in (False, True)
    ]
    wanted = [[own * size for own in shares] for size in (train, test)]
    scale = min([1.0, *(len(pools[part][label]) / wanted[part][label] for part in (0, 1) for label in (0, 1))])
    counts = [[int(scale * each + 0.5) for each in part] for part in wanted]
    if min(map(min, counts)) < 1:
        raise ValueError(
            f"the {len(names)} groups of its texts cannot be divided so that training and test rows have both classes"
        )
    fitted, tested = (
        generator.permutation(np.concatenate([rows[:count] for rows, count in zip(*part, strict=True)]))
        for part in zip(pools, counts, strict=True)
    )
    return Split(fitted, tested, labels[fitted])
