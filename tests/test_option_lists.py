"""The lists of options, packages and methods in the documentation are complete and in order."""

import re

import pytest

from alignlab.cli.composition.compose import ROOT
from tests.test_architecture import ORDER

CONF = ROOT / "conf"
GROUPS = ("method", "model", "data", "peft", "strategy", "optimizer", "scheduler", "rollout", "trainer", "logger")
GROUPS += ("callbacks", "launcher", "method/loss", "method/divergence", "method/reward")
IN_README = ("method", "model", "data", "peft", "strategy", "optimizer", "scheduler", "rollout", "logger", "callbacks")


def listed(page: str, group: str) -> list[str]:
    """Names between backticks in the second cells of a page's rows of a group."""
    text = (ROOT / page).read_text(encoding="utf-8")
    cells = re.findall(rf"^\| `{group}`(?: of [^|]+)? \| ([^|]*) \|", text, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("group", GROUPS)
def test_the_configuration_page_lists_exactly_the_options_of_a_group(group):
    assert sorted(set(listed("docs/configuration.md", group))) == options(group)


@pytest.mark.parametrize("group", IN_README)
def test_the_readme_names_every_option_of_a_group(group):
    assert set(options(group)) <= set(listed("README.md", group))


def test_contributing_lists_the_packages_in_the_order_of_their_imports():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## Packages\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == ORDER
