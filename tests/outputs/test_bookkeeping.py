import pytest

from fsae.analysis.design import design_of
from fsae.configuration.resolvers import deciding_settings, flat_settings
from fsae.outputs.bookkeeping import BOOKKEEPING, is_bookkeeping
from tests.analysis.run_folders import settings_of
from tests.analysis.test_design import table
from tests.composition import composed


def test_a_key_covers_only_itself_and_its_group():
    assert is_bookkeeping("paths.outputs")
    assert is_bookkeeping("source.cache")
    assert not is_bookkeeping("source.cached_norms")
    assert not is_bookkeeping("source")


@pytest.mark.parametrize("name", BOOKKEEPING)
def test_every_key_is_a_setting(name: str):
    assert any(f"{key}.".startswith(f"{name}.") for key in flat_settings(composed()))


@pytest.mark.parametrize("name", BOOKKEEPING)
def test_folders_and_reports_do_not_depend_on_bookkeeping(name: str):
    flat = flat_settings(composed())
    keys = [key for key in flat if f"{key}.".startswith(f"{name}.")]
    assert not set(keys) & set(deciding_settings(composed()))
    runs = [settings_of("gated", 0, 1, 0) | dict.fromkeys(keys, value) for value in ("one", "other")]
    design = design_of(table(*runs))
    assert (design.varied, design.conditions, design.repeats) == ([], [], 1)
