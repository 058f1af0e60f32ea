from importlib.util import find_spec

import pytest

from fsae.evaluation.downstream.packaged_texts import (
    DOUBTFUL,
    packaged_names,
    packaged_texts,
    shifted_names,
    shifted_texts,
)

pytestmark = pytest.mark.skipif(find_spec("sae_probes") is None, reason="sae-probes is not installed")


def test_there_are_the_data_sets_of_the_paper():
    assert len(packaged_names()) == 113
    assert set(DOUBTFUL) <= set(packaged_names())
    assert len(shifted_names()) == 8
    assert set(shifted_names()) <= set(packaged_names())


def test_a_data_set_is_read():
    found = packaged_texts("5_hist_fig_ismale")
    assert (found.counts, found.classes) == ([2500, 2500], ["0", "1"])
    assert found.texts[0] == "Margaret of Clisson"
    assert found.labels[0] == 0


@pytest.mark.parametrize("name", ["5_hist_fig_ismale", "66_living-room", "90_glue_qnli"])
def test_a_shifted_version_has_the_same_question(name: str):
    found = shifted_texts(name)
    assert len(found.classes) == 2
    assert 299 <= len(found) <= 300


def test_names_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="has no data set '2_hist_fig_birthyear' of two classes"):
        packaged_texts("2_hist_fig_birthyear")
    with pytest.raises(ValueError, match=r"no shifted version of '96_spam_is'; it has those of 5_hist_fig_ismale"):
        shifted_texts("96_spam_is")
