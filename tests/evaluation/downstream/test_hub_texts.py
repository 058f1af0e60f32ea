from pathlib import Path
from typing import Any

import pytest

from fsae.evaluation.downstream.hub_texts import HUB_TEXTS, hub_texts
from fsae.evaluation.probing import Probing, ProbingData
from tests.evaluation.downstream.labels import measured, random_latents


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """A copy of a data set on the hub, in its layout."""
    import pyarrow
    import pyarrow.parquet

    (folder / name / "data").mkdir(parents=True)
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), folder / name / "data" / "train-00000-of-00001.parquet"
    )


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    rows = [
        {"text": f"{chr(97 + number % 26)}{number} {'klmn'[number % 4]}", "label": number % 4} for number in range(400)
    ]
    write(tmp_path, "ag_news", rows)
    bios = [{"hard_text": f"text {number}", "profession": number % 28, "gender": 0} for number in range(280)]
    write(tmp_path, "bias_in_bios", bios)
    return tmp_path


def test_the_first_texts_of_each_class_are_read(copies: Path):
    found = hub_texts("bias_in_bios_2", "eval.probing", 3, str(copies))
    assert (found.name, found.counts) == ("bias_in_bios_2", [3] * 5)
    assert found.texts[0] == "text 11"
    assert found.classes == [str(each) for each in HUB_TEXTS["bias_in_bios_2"].classes]


def test_each_class_of_a_data_set_of_the_hub_is_probed(copies: Path):
    evaluation = Probing(
        data=ProbingData.hub, path=str(copies), sets=["ag_news"], k=[1, 16], train=130, test=20, repeats=1
    )
    (found,) = measured(evaluation, random_latents())
    assert list(found.content["probing_sets"][0]) == [f"ag_news: {label}" for label in range(4)]
    # The last character decides the class.
    assert found.numbers[0]["probing_auc_k16_residual"] > 0.9
    assert "probing_auc_k1_noise" not in found.numbers[0]


def test_a_data_set_that_is_not_there_is_refused(copies: Path):
    with pytest.raises(ValueError, match=r"eval\.probing\.sets has 'wikitext'; the data sets on the hub are bias_in"):
        hub_texts("wikitext", "eval.probing", 3)
    with pytest.raises(ValueError, match=r"eval\.probing\.path.*code_x_glue_cc_defect_detection"):
        hub_texts("devign", "eval.probing", 3, str(copies))
