import pytest

from fsae.wording import counted


@pytest.mark.parametrize(("number", "text"), [(0, "0 jobs"), (1, "1 job"), (2, "2 jobs"), (1000, "1,000 jobs")])
def test_one_thing_is_counted_in_the_singular(number: int, text: str):
    assert counted(number, "job") == text
