import dataclasses
from pathlib import Path

import pytest

from fsae.autoencoders.gated import GatedSettings
from fsae.autoencoders.settings import BiasInit, DecoderNorm
from fsae.autoencoders.topk import TopKSettings
from fsae.configuration.schema import RunSettings, Task, schemas, settings_of
from fsae.language_models.settings import Package
from fsae.language_models.sites import Site, SiteName
from fsae.losses.auxiliary import AuxK
from fsae.losses.fisher import Fisher, FisherForm
from fsae.losses.sparsity import L1
from fsae.training.settings import AdamSettings
from tests.composition import composed


def test_a_config_becomes_real_objects():
    settings = settings_of(
        composed("site=mlp_out", "site.layer=2", "loss.penalty.form=pre", "loss.penalty.weight=1e-3")
    )
    assert settings.task is Task.train
    assert settings.name is None
    assert settings.model is not None
    assert settings.model.package is Package.smollm2_135m_instruct_q4_1
    assert settings.site == Site(name=SiteName.mlp_out, layer=2)
    assert isinstance(settings.arch, GatedSettings)
    assert settings.arch.decoder_norm in DecoderNorm
    assert settings.arch.b_dec_init in BiasInit
    fisher = settings.loss["penalty"]
    assert isinstance(fisher, Fisher)
    assert fisher.form is FisherForm.pre
    assert fisher.weight == 1e-3
    assert isinstance(settings.trainer, AdamSettings)
    assert isinstance(settings.trainer.lr, float)


def test_an_architecture_brings_its_loss_and_an_override_replaces_it():
    assert isinstance(settings_of(composed("arch=topk")).loss["auxiliary"], AuxK)
    replaced = settings_of(composed("arch=topk", "loss=standard")).loss
    assert isinstance(replaced["sparsity"], L1)
    assert "auxiliary" not in replaced


def test_settings_are_frozen():
    settings = settings_of(composed())
    for part in dataclasses.fields(RunSettings):
        value = getattr(settings, part.name)
        if dataclasses.is_dataclass(value):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(value, dataclasses.fields(value)[0].name, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.seed = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("schema", list(schemas()))
def test_every_schema_is_a_frozen_dataclass_by_keyword(schema: str):
    parameters = schemas()[schema].__dataclass_params__
    assert parameters.frozen
    # Also a way of seeing keyword-only: there is no positional argument.
    assert all(field.kw_only for field in dataclasses.fields(schemas()[schema]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+site.foo=1", r"site\.foo: there is no such setting; site has: head, layer, name"),
        (
            "+loss.penalty.foo=1",
            r"loss\.penalty\.foo: there is no such setting; loss\.penalty has: decay, estimator, form",
        ),
        ("+sead=1", r"sead: there is no such setting; the root has: arch, "),
        ("+model.name=gpt2", r"model\.name: there is no such setting; .* as in model=gpt2"),
        ("+dataset.name=c4", r"dataset\.name: there is no such setting; .* as in dataset=tinystories"),
        ("model=custom", r"model\.path is not set; add model\.path=FOLDER_OR_HUB_NAME"),
        ("seed=-1", r"^seed is -1; it must be at least 0 and at most 4294967295"),
        ("trainer.lr=-1", r"trainer\.lr is -1; it must be above 0 and at most 1e30"),
        ("site.layer=-1", r"site\.layer is -1; it must be a block, counted from 0, at least 0"),
        ("loss.penalty=none", r"^loss\.penalty is not a loss term; the penalty is a choice, as in penalty=none$"),
        ("loss.penalty=fisher", r"; the penalty is a choice, as in penalty=fisher$"),
        ("loss.penalty=0.5", r"; the penalty is a choice, as in penalty=none$"),
        ("eval=[]", r"^eval names no evaluation; list one or more, as in eval=\[vectors,splice\]$"),
        ("+loss.extra.weight=1", r"loss\.extra is not a loss term; .*`/schema/loss@extra: l1`"),
    ],
)
def test_what_no_schema_knows_and_what_is_out_of_range_is_refused_by_name(override: str, message: str):
    with pytest.raises(ValueError, match=message):
        settings_of(composed(override))


@pytest.mark.parametrize(
    ("group", "content", "message"),
    [
        ("arch", "k: 3", r"arch is not of the kind AutoencoderSettings; .*`defaults: \[/schema/arch@_here_: "),
        ("dataset", "defaults: [/schema/dataset@_here_: dataset]\npath: x", r"dataset\.format is not set"),
    ],
)
def test_an_incomplete_yaml_file_is_refused_with_its_missing_part(
    group: str, content: str, message: str, tmp_path: Path
):
    (tmp_path / group).mkdir()
    (tmp_path / group / "mine.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        settings_of(composed("loss=topk", f"{group}=mine", own=tmp_path))


def test_an_architecture_and_an_experiment_of_one_s_own(tmp_path: Path):
    (tmp_path / "arch").mkdir()
    (tmp_path / "arch" / "wide.yaml").write_text(
        "defaults:\n  - /schema/arch@_here_: topk\n  - _self_\nd_sae: 999\nk: 7\n"
    )
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /arch: wide\n  - override /loss: topk\n  - override /model: tiny\n"
        "seed: 11\nname: mine\nsite:\n  layer: 2\nloss:\n  penalty:\n    weight: 0.5\n"
    )
    settings = settings_of(composed("experiment=mine", own=tmp_path))
    assert settings.arch == TopKSettings(d_sae=999, k=7)
    # Values of the root are the experiment's, not config.yaml's; and the command line's come after both.
    assert (settings.seed, settings.name, settings.place()[1].layer) == (11, "mine", 2)
    assert settings.loss["penalty"].weight == 0.5
    settings = settings_of(composed("experiment=mine", "seed=12", "loss.penalty.weight=0.25", "arch.k=8", own=tmp_path))
    assert isinstance(settings.arch, TopKSettings)
    assert (settings.seed, settings.loss["penalty"].weight, settings.arch.k) == (12, 0.25, 8)


def test_a_yaml_file_with_the_former_name_of_the_penalty_is_refused(tmp_path: Path):
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text(
        "defaults:\n  - squared_error\n  - /schema/loss@fisher: fisher\n  - _self_\nfisher:\n  weight: 0.5\n"
    )
    with pytest.raises(ValueError, match=r"loss\.fisher: there is no such setting; .* loss\.penalty"):
        settings_of(composed("loss=mine", own=tmp_path))
