"""The packs that `launcher=packed` forms."""

from typing import cast

import pytest
from hydra.core.utils import JobReturn

from fsae.configuration.origin import Origin
from fsae.configuration.schema import settings_of
from fsae.sweeps.packed_launcher import PackedLauncher, _Job
from tests.composition import composed


def job(*overrides: str) -> _Job:
    """Return a job with these settings, of which nothing else is known."""
    return _Job(cast(JobReturn, None), settings_of(composed("debug=tiny", *overrides)), cast(Origin, None))


def test_packs_separated_by_seeds_are_reported(caplog: pytest.LogCaptureFixture):
    jobs = [job(f"seed={seed}") for seed in (1, 2)]
    launcher = PackedLauncher(max_jobs=2)
    packs = launcher._packs(jobs)
    with caplog.at_level("INFO"):
        launcher._log_packs(packs, jobs)
    assert caplog.messages[0] == "2 jobs in packs of 1, 1"
    assert caplog.messages[1].startswith("packs could be as few as 1 if source.seed did not differ: ")
    assert len(caplog.messages) == 2


def test_a_pack_of_limited_size_has_few_streams():
    jobs = [job(f"seed={seed}", f"site.layer={layer}", "source.seed=0") for seed in (1, 2) for layer in (3, 1)]
    packs = PackedLauncher(max_jobs=2)._packs(jobs)
    assert [[(job.settings.site.layer, job.settings.seed) for job in pack if job.settings.site] for pack in packs] == [
        [(3, 1), (3, 2)],
        [(1, 1), (1, 2)],
    ]


def test_an_empty_pack_is_refused():
    with pytest.raises(ValueError, match=r"hydra\.launcher\.max_jobs is 0; a pack has at least one job"):
        PackedLauncher(max_jobs=0)
