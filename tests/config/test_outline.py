"""Arguments read from source are those of the imported target."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from alignlab.config import outline as outlines
from alignlab.config.outline import Unclear, outline
from alignlab.config.schema.targets import _names
from alignlab.config.target import locate

CONF = Path(__file__).resolve().parents[2] / "conf"
TARGETS = sorted(
    {
        target
        for file in CONF.rglob("*.yaml")
        if "hydra" not in file.parts
        for target in re.findall(r"_target_: ([\w.]+)", file.read_text(encoding="utf-8"))
        if importlib.util.find_spec(target.split(".")[0]) is not None
    }
)

PACKAGE = {
    "__init__.py": "from invented.parts import Child, Rebound\nfrom .parts import *\n",
    "parts.py": """
import functools
from dataclasses import dataclass, field
from typing import ClassVar
from alignlab.types.settings import Settings
@dataclass(frozen=True, kw_only=True)
class Grouped(Settings):
    first: int
    kind: ClassVar[str] = "x"
    made: int = field(init=False, default=0)
class Base:
    def __init__(self, base, **kwargs): ...
class Closed:
    def __init__(self, *, closed): ...
class Child(Base, Closed):
    def __init__(self, child, grouped: Grouped, **others): ...
class Star(Child): ...
def function(one, *, two=sorted): ...
alias = function
class Rebound: ...
Rebound = functools.partial(Rebound)
@functools.cache
class Decorated: ...
""",
}


@pytest.fixture
def invented(tmp_path, monkeypatch):
    folder = tmp_path / "invented"
    folder.mkdir()
    for name, text in PACKAGE.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(outlines, "PACKAGES", (*outlines.PACKAGES, "invented"))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "invented"]:
        del sys.modules[name]


@pytest.mark.parametrize("target", TARGETS)
def test_every_option_is_read_as_it_is_imported(target):
    assert _names(target, outline(target)) == _names(target, locate(target))


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("Child", {"child", "first", "base", "closed"}),
        ("Star", {"child", "first", "base", "closed"}),
        ("parts.function", {"one", "two"}),
        ("parts.alias", {"one", "two"}),
    ],
)
def test_bases_settings_stars_and_other_names_are_followed(invented, name, names):
    assert _names("", outline(f"invented.{name}")) == names == _names("", locate(f"invented.{name}"))


@pytest.mark.parametrize(
    "name", ["invented.Rebound", "invented.parts.Decorated", "invented.Missing", "numpy.array", "x"]
)
def test_what_is_not_plain_is_left_to_the_import(invented, name):
    with pytest.raises(Unclear):
        outline(name)
