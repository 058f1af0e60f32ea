import numpy as np
import pytest

from fsae.evaluation.downstream.answerability import DOMAINS, answerability
from fsae.evaluation.downstream.probe import auc


@pytest.mark.parametrize("domain", DOMAINS)
def test_length_says_nothing_about_the_label(domain: str):
    found = answerability(domain, 400, seed=0)
    assert found.counts == [200, 200]
    assert len(found.distinct()) == 400
    for length in (len, lambda text: len(text.split())):
        assert auc(np.array([length(text) for text in found.texts]), found.labels) == 0.5


def test_templates_depend_on_the_seed():
    first, again, other = (answerability("order", 50, seed).texts for seed in (0, 0, 1))
    assert first == again != other


def test_examples():
    known, unknown = answerability("context", 2, seed=0).texts
    name = known.split()[-2]
    assert name in known.split(".")[0] + known.split(".")[1] + known.split(".")[2]
    assert name not in unknown.rpartition(".")[0]
