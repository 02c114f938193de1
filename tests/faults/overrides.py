"""Mutated command lines, composed and checked in one long-lived process: a config, or a refusal."""

import random
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from alignlab.cli.composition.compose import ROOT, compose
from alignlab.config import compat, schema
from alignlab.errors import InputError
from tests.faults.cases import Case, time_limit

SECONDS = 30

VALUES = (
    "null", "true", "false", "0", "1", "-1", "3.5", "nan", "-inf", "1e400", "1e-400", "''", "' '", "[]", "{}", "[1]",
    "[[[[]]]]", "{a: 1}", "{_target_: 5}", "{_target_: nowhere.X}", "{_target_: null}", "???", "auto", "none", "None",
    "text", "'a b'", "'ä…😀'", "'\\u0000'", "0x10", "1_000", "1e3", "00:00:01", "${seed}", "${nothing.there}", "${",
    "}", "[", "'", '"', "=", "a=b", "a,b", "range(3)", "choice(1,2)", "/dev/null", "../..", "~", "$HOME", "9" * 40,
    "x" * 300, "x" * 20_000, "[" + "1," * 60 + "1]", "{" * 60 + "}" * 60, "<<", "!!python/object:os.system", "-",
    "@", "a/b", ":", "1:2:3", "\t", "{1: 2}", "{null: 1}", "{a: {b: {c: {d: 1}}}}", "2026-01-01", "inf", "+5", ".5",
)  # fmt: skip
"""Values of every type, and texts that YAML, Hydra or a file system take in a way of their own."""


def cases(work: Path, seed: int, small: bool) -> list[Case]:
    """3,200 command lines; 100 where it shall be quick."""
    groups, keys = vocabulary()
    count = 100 if small else 3200
    return [
        Case(f"overrides {seed} {number}", partial(answered, groups, keys, f"{seed} {number}"))
        for number in range(count)
    ]


def vocabulary() -> tuple[dict[str, list[str]], list[str]]:
    """Groups with their options, and every dotted key of some composed configs, sections included."""
    groups: dict[str, list[str]] = {}
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        group = str(path.parent.relative_to(ROOT / "conf"))
        if group != "." and not group.startswith(("hydra", "pair")):
            groups.setdefault(group, []).append(path.stem)
    lines = (["method=grpo", "peft=lora"], ["method=dpo", "strategy=deepspeed_z3", "model=scratch"], ["logger=wandb"])
    keys = {key for line in lines for key in _keys("", OmegaConf.to_container(compose(line), resolve=False))}
    return groups, sorted(keys)


def answered(groups: dict[str, list[str]], keys: list[str], seed: str, folder: Path) -> None:
    """A config or an ``InputError``; any other exception, and silence for long, is a fault."""
    words = line(random.Random(seed), groups, keys)
    try:
        with time_limit(SECONDS):
            compat.check(schema.check(compose(words)))
    except InputError as refusal:
        assert str(refusal).strip(), f"{shown(words)}: a refusal without words"
    except (Exception, SystemExit) as error:
        raise AssertionError(f"{shown(words)}: {type(error).__name__}: {str(error)[:300]}") from error


def line(chance: random.Random, groups: dict[str, list[str]], keys: list[str]) -> list[str]:
    """One to four words: choices, keys, and what happens to them between head and keyboard."""
    return [_word(chance, groups, keys) for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 4)))]


def shown(words: list[str]) -> str:
    """Words as one would repeat them."""
    return " ".join(repr(word if len(word) < 120 else word[:100] + f"…({len(word)})") for word in words)


def _word(chance: random.Random, groups: dict[str, list[str]], keys: list[str]) -> str:
    if chance.random() < 0.3:
        key = chance.choice(list(groups))
        value = chance.choice(groups[key]) if chance.random() < 0.6 else _value(chance, groups)
    else:
        key, value = chance.choice(keys), _value(chance, groups)
    if chance.random() < 0.15:
        key = _typo(chance, key)
    if chance.random() < 0.1:
        value = _typo(chance, value)
    prefix = chance.choice(("", "", "", "", "", "", "+", "++", "~"))
    word = f"{prefix}{key}={value}"
    if chance.random() < 0.04:
        word = chance.choice(
            (key, f"{key}@x={value}", f"~{key}", f"{key}.=1", f"={value}", "", f"{key}=={value}", f"{key}: {value}")
        )
    return word


def _value(chance: random.Random, groups: dict[str, list[str]]) -> str:
    if chance.random() < 0.15:
        return chance.choice(chance.choice(list(groups.values())))
    if chance.random() < 0.1:
        return str(chance.randint(-(10**12), 10**12))
    return chance.choice(VALUES)


def _typo(chance: random.Random, text: str) -> str:
    """One character more, less, or another."""
    at = chance.randrange(len(text) + 1)
    new = chance.choice(("", "x", ".", "_", "é", "\n", "/", "-", "\x00", " ", "\\", "$", "'", "\U0001f600"))
    return text[:at] + new + text[at + chance.randint(0, 1) :]


def _keys(path: str, tree: Any) -> list[str]:
    if not isinstance(tree, dict):
        return [path]
    below = [key for name, value in tree.items() for key in _keys(f"{path}.{name}" if path else str(name), value)]
    return [path] * bool(path) + below
