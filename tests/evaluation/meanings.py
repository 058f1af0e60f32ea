"""The meaning of every number of the evaluations, by name."""

from fsae.evaluation.choices import CHOICES
from fsae.outputs.results import Meaning

MEANINGS: dict[str, Meaning] = {name: says for each in CHOICES.values() for name, says in each.meanings.items()}
