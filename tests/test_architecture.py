"""The floors of the house: imports go down only, and rooms of the third floor never look into each other."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "alignlab"
FLOORS = {
    "disk": 1, "errors": 1, "processes": 1, "batches": 1, "crew": 1, "adapted": 1, "forest": 1, "metrics": 1,
    "paths": 1, "credentials": 1, "rendering": 1,
    "losses": 2, "rewards": 2,
    "data": 3, "models": 3, "rollout": 3, "training": 3,
    "methods": 4,
    "cli": 5, "run": 5, "parts": 5, "cards": 5, "build": 5, "schema": 5, "compat": 5,
    "kinds": 5, "resolve": 5, "signatures": 5,
}  # fmt: skip
LIBRARIES = {
    "hydra": {5}, "omegaconf": {5}, "lightning": {3, 4, 5}, "transformers": {1, 3, 4, 5}, "peft": {1, 3, 4, 5},
    "datasets": {3}, "deepspeed": {3}, "wandb": {3},
}  # fmt: skip
FILES = sorted(SOURCE.rglob("*.py"))


def room(path):
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down(path):
    if path == SOURCE / "__init__.py":
        return
    here = room(path)
    for name in imported(path):
        top, *rest = name.split(".")
        if top == "alignlab" and rest and rest[0] != here:
            below = FLOORS[rest[0]] < FLOORS[here]
            sibling = FLOORS[rest[0]] == FLOORS[here] and FLOORS[here] in (1, 5)
            assert below or sibling, f"{here} (floor {FLOORS[here]}) imports {name}"
        if top in LIBRARIES:
            assert FLOORS[here] in LIBRARIES[top], f"{here} (floor {FLOORS[here]}) uses {top}"


def test_no_room_without_a_purpose():
    assert not [path for path in FILES if path.stem in ("utils", "common", "helpers", "misc")]
    assert {room(path) for path in FILES} - {"__init__"} <= FLOORS.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 70, f"{node.name} has {length} lines"


def test_no_source_file_opens_a_yaml_of_conf():
    for path in FILES:
        if FLOORS.get(room(path), 0) < 5:
            assert "conf/" not in path.read_text().replace("``conf/", ""), path
