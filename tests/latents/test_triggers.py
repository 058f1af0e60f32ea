"""The shortest trigger, with a model whose activations are known functions of the text."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import Autoencoder
from fsae.autoencoders.standard import StandardSettings
from fsae.language_models.sites import Site, SiteName
from fsae.latents.triggers import shortest_triggers
from tests.latents.tables import hit, hits_of

SITE = Site(name=SiteName.resid_post, layer=0)
BOS, LAST = 9, 3


class Reader:
    """Dimensions at a token 3: 1 always, 1 after a 2, and the share of four 5s among all earlier tokens. At a row's
    first position all of them are 100, as at an attention sink."""

    def __init__(self):
        self.rows: list[list[int]] = []

    def activations(self, tokens: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
        self.rows += tokens.tolist()
        before = torch.roll(tokens, 1, 1)
        before[:, 0] = -1
        fives = ((tokens == 5).cumsum(1) / 4).clamp_max(1)
        x = (tokens == LAST)[..., None] * torch.stack([torch.ones(tokens.shape), before == 2, fives], dim=2)
        x[:, 0] = 100
        return {sites[0]: x.float()}


def identity() -> Autoencoder:
    autoencoder = StandardSettings(d_sae=4).build(3, torch.Generator()).eval()
    with torch.no_grad():
        autoencoder.W_enc.zero_()[:, :3] = torch.eye(3)
    return autoencoder


TOKENS = np.array([[BOS, 5, 5, 1, 5, 5, 2, 3, 7]], np.int32)


def hits() -> pd.DataFrame:
    # A code of -1, as AbsTopK may have, counts by its size.
    return hits_of([hit(latent, 0, [0, 0, code], begin=5) for latent, code in ((0, 1), (1, 1), (2, -1), (3, 1))])


def found(reader: Reader, **settings) -> dict:
    arguments = {"opening": [BOS], "rows_at_once": 3} | settings
    return shortest_triggers(reader, [SITE], identity(), hits(), TOKENS, [0, 1, 2, 3, 7], **arguments)


def test_the_shortest_text_with_half_of_the_code_is_found():
    # Two of four 5s give half of the third code.
    assert found(Reader()) == {0: [3], 1: [2, 3], 2: [5, 5, 2, 3], 3: None, 7: None}


@pytest.mark.parametrize("rows_at_once", [1, 2, 100])
def test_triggers_do_not_depend_on_the_batches(rows_at_once: int):
    assert found(Reader(), rows_at_once=rows_at_once) == found(Reader())


def test_the_share_is_a_setting():
    assert found(Reader(), share=0.75)[2] == [5, 1, 5, 5, 2, 3]


def test_every_row_begins_with_the_opening():
    reader = Reader()
    found(reader)
    assert {row[0] for row in reader.rows} == {BOS}


def test_massive_vectors_and_early_positions_do_not_count():
    # Without an opening, the first position is a sink: it passes for any latent unless it is left out.
    assert found(Reader(), opening=[])[1] == [3]
    assert found(Reader(), opening=[], norm_limits=[10.0])[1] == [2, 3]
    assert found(Reader(), opening=[], first_position=1)[0] == [2, 3]


def test_a_peak_within_the_opening_has_no_trigger():
    early = hits_of([hit(0, 0, [1], begin=0)])
    assert shortest_triggers(Reader(), [SITE], identity(), early, TOKENS, [0], opening=[BOS]) == {0: None}


def test_a_heartbeat_may_stop_the_search():
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        found(Reader(), heartbeat=stop)
