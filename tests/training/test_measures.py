from pathlib import Path

import pytest
import torch

from fsae.autoencoders.settings import DecoderNorm
from fsae.couplings.mutual import Mutual, MutualCoupling
from fsae.losses.matryoshka import Matryoshka
from fsae.losses.nuclear_norm import NuclearNorm
from fsae.losses.sparsity import AnnealedLp, TargetL0
from fsae.outputs.metric_log import read_metrics
from fsae.outputs.run_folder import RunFolder
from fsae.training.learner import Learner
from fsae.training.measures import MEANINGS, batch_measures
from fsae.training.resample import Reinitialisation, Scope
from tests.architectures import build, each_architecture, samples, with_weights
from tests.training.runs import LoneRun, adam, member, pam, terms, training_run
from tests.training.test_pair import coupling, pair

# Identity both ways: codes are the positive inputs.
WEIGHTS = {"W_enc": [[1.0, 0.0], [0.0, 1.0]], "W_dec": [[1.0, 0.0], [0.0, 2.0]]}


def test_hand_computed():
    autoencoder = with_weights("standard", WEIGHTS, decoder_norm=DecoderNorm.free)
    x = torch.tensor([[3.0, 0.0], [4.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    # Codes (3 0) (4 1) (0 0); reconstructions (3 0) (4 2) (0 0); errors 0, 1, 1. The scale was 2.
    measures = {name: value.item() for name, value in batch_measures(autoencoder(x), scale=2.0).items()}
    assert measures["l0"] == pytest.approx(3 / 3)
    assert measures["mse"] == pytest.approx((0 + 1 + 1) / 3 / 2**2)
    assert measures["l2_ratio"] == pytest.approx((1 + (20 / 17) ** 0.5 + 0) / 3)
    # Means 7/3 and 0: 25 - 3 (7/3)^2 in the first column, 2 in the second.
    assert measures["fvu"] == pytest.approx(2 / (25 - 49 / 3 + 2))


def test_l1_weighs_codes_by_decoder_norms_only_if_norms_are_free():
    x = torch.tensor([[4.0, 1.0]], dtype=torch.float64)
    for norm, wanted in ((DecoderNorm.free, 4 + 1 * 2), (DecoderNorm.unit, 4 + 1)):
        autoencoder = with_weights("standard", WEIGHTS, decoder_norm=norm)
        assert batch_measures(autoencoder(x), scale=2.0)["l1"].item() == pytest.approx(wanted / 2)


@each_architecture
def test_sparse_and_dense_codes_measure_the_same(arch: str):
    autoencoder, x = build(arch), samples(40)
    state = {name: value.clone() for name, value in autoencoder.state_dict().items()}
    dense = batch_measures(autoencoder(x, False), 1.7)
    autoencoder.load_state_dict(state)
    sparse = batch_measures(autoencoder(x, True), 1.7)
    assert dense.keys() == sparse.keys()
    for name in dense:
        assert sparse[name].item() == pytest.approx(dense[name].item(), rel=1e-9), name


def measured(run: LoneRun, folder: Path) -> set[str]:
    """Return the names of all measures that a training logs, as the table of meanings writes them."""
    run.train()
    logged = [name for record in read_metrics(RunFolder(folder).metrics) for name in record.metrics]
    names = [*terms("topk"), *terms("jumprelu"), "dimension"]
    own = {f"{term}{end}": f"TERM{end}" for term in names for end in ("", "_weighted")}
    own |= {f"{each}/{name}": "MEMBER/loss" for each in range(2) for name in ("loss", "fvu", "l0", "dead_share")}
    own |= {f"{run.source.unit}_per_second": "UNIT_per_second"}
    own |= {f"level_{number}": "level_NUMBER" for number in range(2)}
    names = {name.removeprefix("train/") for name in logged}
    return {name if name in MEANINGS else own.get(name, name) for name in names}


def test_every_measure_that_training_logs_has_a_meaning(tmp_path: Path):
    population = training_run("topk", tmp_path / "population")
    learners: list[Learner] = [member("topk", adam(), seed=seed) for seed in range(2)]
    population.members, population.coupling = learners, MutualCoupling(Mutual(weight=0.1), seed=0)
    population.reinitialisation = Reinitialisation(scope=Scope.latents, every=4, until=0.8)
    pam_member = member("topk", pam(), decoder_norm=DecoderNorm.free)
    target = member("jumprelu", adam(), loss={**terms("jumprelu"), "sparsity": TargetL0(target=4.0)})
    annealed = member("standard", adam(), loss={**terms("standard"), "sparsity": AnnealedLp()})
    nested = member("topk", adam(), loss={**terms("topk"), "reconstruction": Matryoshka(widths=[0.5])})
    grouped = member("group_topk", adam(), loss={**terms("group_topk"), "dimension": NuclearNorm(weight=0.1)})
    runs = {
        "population": population,
        "pam": training_run("topk", tmp_path / "pam", pam(), trained=pam_member),
        "target": training_run("jumprelu", tmp_path / "target", trained=target),
        "annealed": training_run("standard", tmp_path / "annealed", trained=annealed),
        "nested": training_run("topk", tmp_path / "nested", trained=nested),
        "grouped": training_run("group_topk", tmp_path / "grouped", trained=grouped),
        "pair": pair(tmp_path / "pair", coupling()),
    }
    found = set[str]().union(*(measured(run, tmp_path / name) for name, run in runs.items()))
    assert found == MEANINGS.keys()
