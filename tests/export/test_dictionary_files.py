import pytest
import torch

from fsae.export.dictionary_files import is_dictionary, load_autoencoder, load_members
from fsae.export.provenance import Provenance
from fsae.export.releases.choices import RELEASES
from fsae.export.saelens import save_saelens
from tests.architectures import build
from tests.export.releases import test_circuit_tracer as circuit_tracer
from tests.export.releases import test_crosscoder_learning as crosscoder_learning
from tests.export.releases import test_dictionary_learning as dictionary_learning
from tests.export.releases import test_gemma_scope as gemma_scope
from tests.export.releases import test_gemma_scope_2 as gemma_scope_2
from tests.export.releases import test_model_diff as model_diff
from tests.export.releases import test_openmoss as openmoss
from tests.export.releases import test_sparsify as sparsify
from tests.export.releases import test_state_dict_file as state_dict_file

# How a dictionary in each layout is written below a folder.
WRITERS = {
    "SAELens": lambda folder: save_saelens(build("topk", dtype=torch.float32), folder, Provenance()),
    "Gemma Scope": lambda folder: gemma_scope.write(folder, "."),
    "Gemma Scope 2": gemma_scope_2.write,
    "Gemma Scope 2, several layers": gemma_scope_2.write_layers,
    "Llama Scope": openmoss.llama_scope,
    "OpenMOSS": openmoss.openmoss,
    "sparsify": sparsify.write,
    "dictionary_learning": lambda folder: dictionary_learning.write(folder, "AutoEncoder"),
    "circuit-tracer": lambda folder: circuit_tracer.write(folder),
    "circuit-tracer, cross-layer": lambda folder: circuit_tracer.write_cross_layer(folder),
    "crosscoder_learning": lambda folder: crosscoder_learning.write(folder, "CROSSCODER", {}),
    "crosscoder-model-diff-replication": model_diff.write,
    "OpenAI, Qwen Scope, Goodfire, DeepSeek-R1": lambda folder: state_dict_file.write(
        folder / "5.pt", state_dict_file.OPENAI
    ),
}


@pytest.mark.parametrize("name", [release.name for release in RELEASES])
def test_each_layout_is_recognised_as_itself_alone(tmp_path, name):
    folder = tmp_path / "layers.5"
    WRITERS[name](folder)
    paths = [folder, *folder.iterdir()]
    assert {release.name for release in RELEASES for path in paths if release.holds(path)} == {name}


def test_an_unknown_folder_is_refused_with_the_layouts_that_are_read(tmp_path):
    (tmp_path / "model.bin").touch()
    with pytest.raises(ValueError, match=r"expected a dictionary, found model.bin; the layouts .* SAELens \(cfg"):
        load_autoencoder(tmp_path)
    assert not is_dictionary(tmp_path)


def test_a_folder_of_several_dictionaries_names_one_of_them(tmp_path):
    for name in ("layers.0", "layers.1"):
        sparsify.write(tmp_path / name)
    with pytest.raises(ValueError, match=r"holds 2 dictionaries; name one of them, such as .*layers.0"):
        load_autoencoder(tmp_path)


def test_the_members_of_a_population_are_read_in_their_order(tmp_path):
    for number in range(3):
        autoencoder = build("topk", dtype=torch.float32)
        with torch.no_grad():
            autoencoder.b_dec.fill_(number)
        save_saelens(autoencoder, tmp_path / str(number), Provenance())
    assert [each.b_dec[0].item() for each in load_members(tmp_path)] == [0, 1, 2]
    assert len(load_members(tmp_path / "1")) == 1
