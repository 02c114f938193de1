"""Whatever stands anywhere in a config, it is a config that runs or a refusal in words, never another exception."""

import copy

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alignlab.cli.composition.compose import compose
from alignlab.cli.main import main
from alignlab.config import compat, schema
from alignlab.errors import InputError

GROUPS = (
    *("rollout", "method", "model", "data", "peft", "strategy", "optimizer", "scheduler", "trainer", "logger"),
    *("callbacks", "launcher", "experiments", "sweeps", "method/loss", "data.source", "checkpoint", "hydra.run"),
)
WORDS = ("false", "[]", "{}", "''")
VALUES = (False, [], {}, "", {"_target_": 5}, "${a}")
CONFIGS = (  # between them every kind of node
    ["method=grpo", "peft=qlora"],
    ["data=jsonl", "data.path=x", "strategy=fsdp", "logger=tensorboard"],
)


def answer(make) -> str:
    """``config`` or ``refused``; anything else is raised."""
    try:
        cfg = make()
        schema.check(cfg)
        compat.check(OmegaConf.to_container(cfg, resolve=True))
    except InputError as error:
        assert len(str(error)) < 4000
        return "refused"
    return "config"


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_of_any_value(group):
    words = [f"{group}={word}" for word in WORDS] + [f"+{group}=[1]"]
    assert {answer(lambda word=word: compose([word])) for word in words} <= {"config", "refused"}


def test_a_command_line_with_a_list_for_a_group_is_refused(capsys):
    assert main(["train", "+strategy=[1,1]"]) == 2
    assert capsys.readouterr().err.startswith("Refused")


@pytest.mark.parametrize(
    "word", ["peft=false", "logger=false", "callbacks=false", "rollout=false", "data=false", "trainer=5"]
)
def test_a_group_that_is_switched_off_by_another_word_names_its_options(word):
    with pytest.raises(InputError) as refusal:
        compose([word])
    group = word.split("=")[0]
    none = group in ("peft", "logger", "callbacks", "rollout")
    assert (f"Type {group}=none." if none else f"{group} has no option") in str(refusal.value)


def keys(path, tree):
    """Dotted keys of sections and nodes, outermost first."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield (*path, key)
        yield from keys((*path, key), value)


def replaced(plain, path, value):
    plain = copy.deepcopy(plain)
    inner = plain
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = copy.deepcopy(value)
    try:
        return OmegaConf.create(plain)
    except OmegaConfBaseException as error:  # a broken ${…}; on the command line Hydra refuses it
        raise InputError("a config", str(error), "-") from error


@pytest.mark.parametrize("words", CONFIGS, ids=" ".join)
def test_any_value_at_any_place(words):
    plain = OmegaConf.to_container(compose(words), resolve=False)
    places = [path for path in keys((), plain) if path[-1] == "_target_" or path[-1] == "name" or len(path) == 1]
    found = [answer(lambda p=path, v=value: replaced(plain, p, v)) for path in places for value in VALUES]
    assert set(found) == {"config", "refused"}
