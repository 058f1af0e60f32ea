from pathlib import Path

import pytest

import fsae
from fsae.configuration.conf_folder import conf_folder


def test_a_source_tree_has_its_conf_folder_next_to_src():
    assert conf_folder() == Path(__file__).resolve().parents[2] / "conf"
    assert (conf_folder() / "config.yaml").is_file()


def test_a_packaged_conf_folder_takes_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "fsae" / "conf").mkdir(parents=True)
    monkeypatch.setattr(fsae, "__file__", str(tmp_path / "fsae" / "__init__.py"))
    assert conf_folder() == tmp_path / "fsae" / "conf"
