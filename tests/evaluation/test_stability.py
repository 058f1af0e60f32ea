"""Latents that other seeds find again: by hand, planted, at random, and over the folders of a sweep."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fsae.autoencoders.autoencoder import SparseAutoencoder
from fsae.autoencoders.layout import Ends, Layout, blocks_per_layer
from fsae.evaluation import stability
from fsae.evaluation.stability import Decoder, Stability, compare_seeds, random_cosine
from fsae.evaluation.subject import Examined, Subject
from fsae.evaluation.suite import measure
from fsae.export.provenance import Provenance
from fsae.export.saelens import load_saelens, save_density, save_saelens
from fsae.outputs.run_folder import RunFolder
from fsae.outputs.status import RunState, mark
from fsae.outputs.sweep_folder import Sweep
from fsae.sources.in_memory import InMemorySource
from tests.architectures import with_weights

EVERY = torch.ones(3, dtype=torch.bool)


def writing(rows: Tensor, k: int) -> SparseAutoencoder:
    """An autoencoder with this decoder."""
    return with_weights("topk", {"W_enc": rows.T.tolist(), "W_dec": rows.tolist()}, k=k)


def test_by_hand():
    mine = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    # The third latent of both is dead. Rows 0 and 1 of the other are at cosines 0.6 and -0.8, and 0.8 and 0.6.
    other = torch.tensor([[0.6, -0.8], [8.0, 6.0], [1.0, 1.0]])
    alive = torch.tensor([True, True, False])
    found = compare_seeds(Decoder(mine, alive), [Decoder(other, alive), Decoder(mine, alive)])
    # Cosines are [[0.6, 0.8], [-0.8, 0.6]]: 0.6 and 0.6 match with signs, 0.8 and |-0.8| without.
    assert found.signed == pytest.approx([0.6, 1.0])
    assert found.absolute == pytest.approx([0.8, 1.0])
    assert found.found_by.tolist() == [3, 3, 0]


def test_a_planted_copy_is_found_whole_and_random_directions_by_chance():
    rows = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    alive = torch.ones(40, dtype=torch.bool)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    drawn = torch.randn(40, 16, generator=torch.Generator().manual_seed(2))
    found = compare_seeds(Decoder(rows, alive), [Decoder(-3 * rows[order], alive), Decoder(drawn, alive)])
    assert found.absolute[0] == pytest.approx(1, abs=1e-6)
    assert found.signed[0] < 0.6
    assert found.absolute[1] == pytest.approx(random_cosine(alive, alive, Ends.of(16)), abs=0.03)


def test_chance_is_that_of_rows_in_their_own_parts():
    # Each latent writes one part of one dimension, so the cosines are 1 within a part and 0 between parts.
    parts = Layout((("a", 1), ("b", 1)))
    ends = Ends(input=parts, target=parts, blocks=blocks_per_layer(2))
    first_of_both, both_of_first = torch.tensor([True, False, True, False]), torch.tensor([True, True, False, False])
    assert random_cosine(first_of_both, first_of_both, ends) == pytest.approx(1)
    assert random_cosine(first_of_both, both_of_first, ends) == pytest.approx(0.5)


def test_more_latents_than_the_other_has_are_matched_as_far_as_they_go():
    mine = torch.eye(3)
    found = compare_seeds(Decoder(mine, EVERY), [Decoder(mine, torch.tensor([False, True, False]))])
    assert found.absolute == [1.0]
    assert found.found_by.tolist() == [1, 2, 1]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep over two k and three seeds; the job of the last seed and k=2 has not finished."""
    folder = tmp_path_factory.mktemp("sweep")
    jobs = [[f"arch.k={k}", f"seed={seed}"] for k in (1, 2) for seed in (1, 2, 3)]
    Sweep(
        folder=folder,
        tag="it",
        started="",
        command=[],
        working_directory="",
        outputs="",
        config_dirs=[],
        hydra_overrides=[],
        constant=[],
        varied=["arch.k", "seed"],
        jobs=jobs,
    ).write()
    turned = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    for number, (k, seed) in enumerate(jobs):
        rows: Tensor = torch.eye(2) if seed != "seed=2" else turned
        job = RunFolder(folder / str(number))
        job.path.mkdir()
        save_saelens(writing(rows, int(k[-1])), job.sae, Provenance())
        save_density(job.sae, torch.tensor([0.5, 0.5 if k == "arch.k=1" else 0.0]))
        mark(job.path, RunState.finished if number < 5 else RunState.interrupted)
    return folder


def subject(*folders: Path) -> Subject:
    x = torch.zeros(2, 2)
    runs = [Examined([load_saelens(folder / "sae")], folder=folder) for folder in folders]
    return Subject(runs, InMemorySource(x, x, 0, x.device))


def test_jobs_are_compared_with_the_jobs_that_differ_in_their_seed(sweep: Path):
    first, fourth = Stability().measure(subject(sweep / "0", sweep / "3"))
    (numbers,) = first.numbers
    assert numbers["stability_seeds"] == 3
    assert numbers["stability_mcc"] == pytest.approx((0.8 + 1) / 2)
    assert numbers["stability_mcc_noise"] == pytest.approx(0.02**0.5)
    assert numbers["stability_mcc_signed"] == pytest.approx((0.6 + 1) / 2)
    assert (numbers["stability_found_share"], numbers["stability_alone_share"]) == (1, 0)
    assert first.content == {"latents_by_seeds": [0, 0, 0, 2]}
    assert first.files == {"stability.json": {"found_by": [[3, 3]]}}
    # One other seed is finished, in which the only live latent is at a cosine of 0.6.
    assert fourth.numbers[0]["stability_mcc"] == pytest.approx(0.6)
    assert fourth.numbers[0]["stability_alone_share"] == 1
    assert fourth.content == {"latents_by_seeds": [1, 1, 0]}


def test_each_pair_is_matched_once_whatever_its_order(sweep: Path, monkeypatch: pytest.MonkeyPatch):
    pairs = []

    def matched(first: Decoder, second: Decoder) -> stability.Match:
        pairs.append((first, second))
        return stability_matched(first, second)

    stability_matched = stability.matched
    monkeypatch.setattr(stability, "matched", matched)
    shutil.rmtree(sweep / "stability", ignore_errors=True)
    folders = [sweep / name for name in ("0", "1", "2")]
    found = [measured.files for measured in Stability().measure(subject(*folders))]
    # The first and the third dictionary are equal.
    assert len(pairs) == 2
    assert [measured.files for measured in Stability().measure(subject(*folders))] == found
    assert len(pairs) == 2
    shutil.rmtree(sweep / "stability")
    apart = [Stability().measure(subject(folder))[0].files for folder in reversed(folders)]
    assert apart[::-1] == found
    assert len(pairs) == 4


def test_a_run_without_other_seeds_is_left_out_while_others_are_measured(
    sweep: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    alone = tmp_path / "alone"
    alone.mkdir()
    save_saelens(writing(torch.eye(2), 1), alone / "sae", Provenance())
    runs = subject(alone, sweep / "0")
    findings = measure(runs, {"stability": Stability()})
    assert [sorted(each.measured) for each in findings] == [[], ["stability"]]
    assert findings[1].numbers["stability_seeds"] == 3
    assert "stability is measured for the other runs alone" in caplog.text
    assert f"{alone} is no job of one" in caplog.text


def test_runs_without_other_seeds_are_refused(sweep: Path, tmp_path: Path):
    alone = tmp_path / "alone"
    alone.mkdir()
    save_saelens(writing(torch.eye(2), 1), alone / "sae", Provenance())
    with pytest.raises(ValueError, match="alone is no job of one; name a finished sweep over seeds"):
        Stability().measure(subject(alone))
    for other in ("4", "5"):
        (sweep / other / "status.json").rename(sweep / other / "hidden")
    with pytest.raises(ValueError, match="no finished job differs from 3 in its seed alone"):
        Stability().measure(subject(sweep / "3"))
    (sweep / "0" / "sae" / "sparsity.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no densities, .* fsae.evaluate .* 'eval=\[vectors\]'"):
        Stability().measure(subject(sweep / "1"))
