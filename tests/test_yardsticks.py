"""Every method has a yardstick, and its default run from the embedded model reaches it."""

import pytest
from benchmarks.yardsticks import BEGIN, END, README, YARDSTICKS, ends, run

from tests.commands import REPOSITORY

METHODS = {path.stem for path in (REPOSITORY / "conf" / "method").glob("*.yaml")} - {"pretrain"}


def test_every_method_has_a_yardstick_and_a_line_in_the_table():
    table = README.read_text().partition(BEGIN)[2].partition(END)[0]
    assert YARDSTICKS.keys() >= METHODS
    assert all(f"method={method}`" in table or f"method={method} " in table for method in METHODS)


@pytest.mark.slow
@pytest.mark.parametrize("name", YARDSTICKS)
def test_the_default_run_reaches_its_yardstick(tmp_path, name):
    assert ends(name, run(name, 1, tmp_path / "run"))[1] >= YARDSTICKS[name].least
