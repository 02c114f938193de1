"""README and docs say what is true: every command, config option, metric, format, link and test named there is real."""

import json
import re
import shlex
import sys
import tomllib
from pathlib import Path
from subprocess import Popen

import pytest
from omegaconf import OmegaConf

from alignlab import run
from alignlab.cli import chat, compare, dashboard, estimate, evaluate, export, preview, report, serve
from alignlab.cli.composition.compose import compose
from alignlab.cli.main import main
from alignlab.cli.sweep import sweep
from alignlab.data.formats import FORMATS, to_row
from alignlab.data.sources.files import Record
from alignlab.metrics import METRICS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "experiments/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r'title="([^"]+)"')
GROUPS = sorted(
    path.relative_to(ROOT / "conf").as_posix()
    for path in (ROOT / "conf").rglob("*")
    if path.is_dir() and not path.is_relative_to(ROOT / "conf" / "hydra")
)


def blocks(language: str) -> list[tuple[str, str, str]]:
    """Page, what stands beside the language, and content of each fenced block of a language."""
    found = [(name, fence.groups()) for name, text in TEXTS.items() for fence in FENCE.finditer(text)]
    return [(name, beside, content) for name, (fenced, beside, content) in found if fenced == language]


def lines(content: str) -> list[list[str]]:
    """The words of each line of a shell block; continued lines joined, comments and the environment left out."""
    joined = content.replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in joined]
    bare = [words[next((i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), 0) :] for words in split]
    return [words for words in bare if words]


def typed() -> dict[str, list[str]]:
    """Every command in a ``bash`` block, in a cell of a table, and in a comment of an experiment or a sweep."""
    cells = re.findall(r"^\|.*`((?:python train\.py|alignlab) [^`]+)` \|$", "\n".join(TEXTS.values()), re.MULTILINE)
    files = [path for name in ("experiments", "sweeps") for path in sorted((ROOT / name).rglob("*.yaml"))]
    named = "\n".join(path.read_text() for path in files)
    comments = re.findall(r"^# +(python train\.py [^:\[\n]+)", named, re.MULTILINE)
    contents = [*(content for _, _, content in blocks("bash")), *cells, *comments]
    return {" ".join(words): words for content in contents for words in lines(content)}


COMMANDS = [pytest.param(words, id=name) for name, words in typed().items()]
REFUSALS = [pytest.param(content, id=content.splitlines()[0]) for _, _, content in blocks("console")]


def verb(words: list[str]) -> list[str] | None:
    """The words after ``alignlab``, the verb first; None for another program."""
    if words[:2] == ["python", "train.py"]:
        return ["train", *words[2:]]
    return words[1:] if words[0] == "alignlab" else None


@pytest.fixture(scope="module")
def config() -> str:
    """The config of a finished run."""
    return OmegaConf.to_yaml(OmegaConf.merge(compose(), {"run_dir": "RUN"}), resolve=True)


@pytest.fixture
def folder(monkeypatch, tmp_path, config):
    """A folder as the docs suppose it: the files that they show, and a run; with training replaced by a note."""
    for _, beside, content in blocks("python") + blocks("yaml"):
        if title := TITLE.search(beside):
            path = tmp_path / title[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    made = []
    monkeypatch.setattr(run, "fit", lambda config, command: made.append(config))
    monkeypatch.setattr(sweep, "start", lambda config, *_: made.append(config) or Popen("true"))
    monkeypatch.setattr(preview, "show", made.append)
    monkeypatch.setattr(estimate, "show", made.append)
    monkeypatch.setattr(report, "write", made.append)
    monkeypatch.setattr(compare, "show", made.append)
    monkeypatch.setattr(chat, "talk", made.append)
    monkeypatch.setattr(dashboard, "save", made.append)
    monkeypatch.setattr(evaluate, "measure", made.append)
    monkeypatch.setattr(export, "write", made.append)
    monkeypatch.setattr(serve, "serve", made.append)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / ".venv-vllm" / "bin").mkdir(parents=True)
    (tmp_path / ".venv-vllm" / "bin" / "python").symlink_to(sys.executable)  # as make vllm leaves it
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "config.yaml").write_text(config, encoding="utf-8")
    (tmp_path / "RUN" / "summary.json").write_text("{}")
    return made


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_is_real(words, folder):
    """Ours compose and pass schema and compat, sweeps job by job; of the others, targets and extras exist."""
    if ours := verb(words):
        if {"-h", "--help"} & set(ours):
            assert main(ours) == 0
        else:
            assert main(ours) == 0
            assert folder or "--cfg" in ours
        return
    assert words[0] in OTHERS, f"{words[0]} is not a program that the docs may name: {' '.join(words)}"
    OTHERS[words[0]](words[1:])


def make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {word for word in words if "=" not in word} <= set(targets)


def pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"\[([\w,]+)\]", " ".join(words))
    assert {extra for group in named for extra in group.split(",")} <= extras.keys()


def path(words: list[str]) -> None:
    assert all((ROOT / word).exists() for word in words if "/" in word)


OTHERS = {"make": make, "pip": pip, "pytest": path, "python": path, "wandb": path}
OTHERS |= dict.fromkeys(("torchrun", "deepspeed", "srun", "tensorboard", "cd", "cp", "git", "source"), str)
"""Programs besides ours, with the check of their words; for the last ones there is nothing to check."""


@pytest.mark.parametrize("content", REFUSALS)
def test_every_refusal_shown_is_what_is_printed(content, folder, capsys):
    """A ``console`` block: a command after ``$``, and what it prints before it ends with exit code 2."""
    command, _, shown = content.partition("\n")
    assert main(verb(shlex.split(command.removeprefix("$ ")))) == 2
    assert capsys.readouterr().err.split() == shown.split()


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_is_named(group):
    """In some page, as ``option`` between backticks or as group=option."""
    text = "\n".join(TEXTS.values())
    options = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
    ways = "`{0}`|" + re.escape(group) + r"=\[?(?:\w+,)*{0}\b|@[\w.]+=(?:\w+,)*{0}\b"
    assert sorted(option for option in options if not re.search(ways.format(option), text)) == []


def test_every_choice_in_prose_is_an_option():
    chosen = {match.groups() for text in TEXTS.values() for match in re.finditer(r"`([a-z_/]+)=(\w+)`", text)}
    wrong = [(group, option) for group, option in chosen if group in GROUPS]
    assert [pair for pair in wrong if not (ROOT / "conf" / f"{pair[0]}/{pair[1]}.yaml").is_file()] == []


def test_every_metric_has_its_row_and_every_row_its_metric():
    rows = re.findall(r"^\| `([\w/]+)` \| ([^|]+) \|", TEXTS["docs/curves.md"], re.MULTILINE)
    assert dict(rows) == {name: metric.unit for name, metric in METRICS.items()}


def test_every_format_has_an_example_that_is_detected():
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \| (\w+) \|", TEXTS["docs/own_data.md"], re.MULTILINE)
    assert {name for name, _, _ in rows} == FORMATS.keys()
    for name, example, kind in rows:
        record = Record("docs:1", json.loads(example))
        row = to_row(record, name, {})
        assert type(row).__name__ == kind, name
        assert row == to_row(record, "auto", {}) or name == "alpaca_prompt", name


@pytest.mark.parametrize("name", TEXTS)
def test_links_and_tests_named_exist(name):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", TEXTS[name]):
        assert ((ROOT / name).parent / target).exists(), target
    for file, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TEXTS[name]):
        assert f"def {test}" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{test}"
