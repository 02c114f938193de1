"""Where rows are is said once, in ``data``: its source takes it from there, in a repeated run too."""

import json

import pytest

from alignlab.cli.composition.compose import compose
from alignlab.config import schema
from alignlab.config.build import build
from alignlab.config.sources import SHARED, source_node
from alignlab.errors import InputError
from tests.commands import QUIET, alignlab


def checked(*words):
    return schema.check(compose(list(words)))["data"]


def test_a_file_is_named_once(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"q": "1", "completion": "2"}))
    path = str(tmp_path / "a.jsonl")
    data = checked("data=jsonl", f"data.path={path}", "data.columns={prompt: q}")
    assert data["source"] == {"_target_": "alignlab.data.sources.local.Files"}
    assert source_node(data)["path"] == path
    source = build("data.source", source_node(data))
    assert (source.format, source.columns) == ("auto", {"prompt": "q"})
    assert len(list(source.rows("train"))) == 1


@pytest.mark.parametrize("option", ["hub", "gsm8k", "alpaca", "registry", "jsonl"])
def test_no_option_says_twice_what_its_source_takes(option):
    given = {"hub": ["data.path=x"], "jsonl": ["data.path=x"], "registry": ["data.dataset_info=x", "data.name=y"]}
    data = checked(f"data={option}", *given.get(option, []))
    assert not data["source"].keys() & set(SHARED)
    assert source_node(data)["bad_rows"] == "error"


def test_what_the_node_itself_gives_wins():
    assert source_node(checked("data=jsonl", "data.path=a", "+data.source.path=b"))["path"] == "b"


def test_a_source_takes_only_what_it_has_an_argument_for():
    data = checked("data=arithmetic")
    assert source_node(data) == data["source"]


@pytest.mark.parametrize(
    "word",
    ["data.path=5", "data.columns=5", "data.bad_rows=maybe", "data.validation_path={a: 5}", "data.streaming=often"],
)
def test_values_are_checked_as_the_source_wants_them(word):
    with pytest.raises(InputError, match=word.split("=")[0]):
        checked("data=hub" if "streaming" in word else "data=jsonl", "data.path=x", word)


def test_a_repeated_run_reads_the_file_that_is_typed(tmp_path, monkeypatch):
    """The new path, not the one in the repeated run's config."""
    from alignlab import run

    seen = []
    monkeypatch.setattr(run, "fit", lambda config, command: seen.append(source_node(config["data"])["path"]))
    words = [*QUIET, "data=jsonl", "data.path=a.jsonl"]
    (tmp_path / "config.yaml").write_text(_yaml(words))
    assert alignlab("train", "--from", tmp_path) == 0
    assert alignlab("train", "--from", tmp_path, "data.path=b.jsonl") == 0
    assert seen == ["a.jsonl", "b.jsonl"]


def _yaml(words):
    from alignlab.config.resolve import as_yaml

    return as_yaml(schema.check(compose(words)))
