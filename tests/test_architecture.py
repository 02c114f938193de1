"""The order of packages: each imports those before it, none behind it; and which libraries reach how deep."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "alignlab"
ORDER = [
    *("errors", "metrics", "system", "types", "losses", "distributed", "optim", "run_folder", "rendering", "models"),
    *(
        "data",
        "rewards",
        "rollout",
        "measures",
        "methods",
        "callbacks",
        "chat",
        "config",
        "assemble",
        "estimate",
        "run",
        "evaluation",
        "report",
        "cli",
        "api",
    ),
]
"""From what knows nothing of the others to what knows all of them."""

LIBRARIES = {
    "hydra": {"cli"},
    "omegaconf": {"config", "run", "cli"},
    "datasets": {"data"},
    "deepspeed": {"distributed"},
    "wandb": {"run_folder"},
    "mlflow": {"run_folder"},
    "trackio": {"run_folder"},
}
"""Packages that may import a library; the others do not depend on it."""

PURE = {"errors", "metrics", "types", "losses"}
"""What works in a notebook where nothing but PyTorch is installed."""

FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def package(path):
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imported(path, when_run=False):
    """Modules that a file imports; ``when_run`` leaves out what stands there for type checkers only."""
    tree = ast.parse(path.read_text())
    if when_run:
        tree.body = [node for node in tree.body if "TYPE_CHECKING" not in ast.unparse(node).splitlines()[0]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_follow_the_order_of_packages(path):
    here = package(path)
    for name in imported(path):
        top, *rest = name.split(".")
        if top == "alignlab" and rest:
            assert ORDER.index(rest[0]) <= ORDER.index(here), f"{here} imports {name}, which comes after it"
        if top in LIBRARIES:
            assert here in LIBRARIES[top], f"{here} imports {top}"


def test_losses_need_pytorch_alone():
    """Of what stands in annotations pydantic may be there too."""
    for path in FILES:
        if package(path) in PURE:
            tops = {name.split(".")[0] for name in imported(path, when_run=True)}
            assert not tops & {"lightning", "transformers", "peft", "hydra", "omegaconf", "datasets"}, path


def test_every_package_has_its_position_and_no_file_is_a_drawer():
    assert {package(path) for path in FILES} == set(ORDER)
    assert not [path for path in FILES if path.stem in ("utils", "common", "helpers", "misc")]


def test_no_source_file_below_the_command_line_knows_the_config_folder():
    for path in FILES:
        if package(path) not in ("config", "assemble", "run", "cli"):
            assert "conf/" not in path.read_text().replace("``conf/", ""), path
