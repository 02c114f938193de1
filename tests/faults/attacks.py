"""Configs, templates and weights that somebody sent: each is refused in words, and a canary file never appears."""

import copy
import functools
import itertools
import json
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from alignlab.cli.composition.compose import compose
from alignlab.config import compat, schema
from alignlab.errors import InputError
from alignlab.models.locations import POCKET
from tests.commands import QUIET
from tests.faults.cases import Case
from tests.faults.payloads import CANARY, CHOICE_OF, PARTIAL, PLACES, REWARDS, TARGETS, TEMPLATES, TEXTS
from tests.faults.promises import refused
from tests.faults.runs import run

TINY = [
    *QUIET,
    "trainer.max_steps=1",
    "data.source.num_train=20",
    "data.source.num_validation=2",
    "data.cache_dir=cache",
    "run_dir=run",
]
SECONDS = 40
"""In which an attack must be refused, those with endless loops included."""


class Evil:
    """What a pickle makes when it is opened."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


def cases(work: Path, seed: int, small: bool) -> list[Case]:
    """All of them, each target in a few places; one place each where it shall be quick."""
    places = itertools.cycle(PLACES)
    num_places = 1 if small else 3
    rewards = ["method=grpo", "method/reward=python"]
    return [
        *(
            Case(f"{place} = {target}", partial(sent, target, place))
            for target in TARGETS
            for place in itertools.islice(places, num_places)
        ),
        *(Case(f"reward {path}", partial(typed, [*rewards, f"method.reward.python.path={path}"])) for path in REWARDS),
        *(Case(name, partial(typed, [text])) for name, text in TEXTS.items()),
        *(Case(f"template: {name}", partial(template, text)) for name, text in TEMPLATES.items()),
        *(Case(f"pickle as {name}", partial(pickled, make)) for name, make in PICKLES.items()),
    ]


def sent(target: str, place: str, folder: Path) -> None:
    """A saved config with the target and its arguments in a place of it, run with ``--from``."""
    plain = copy.deepcopy(_plain(CHOICE_OF.get(place, "method=sft")))
    *parents, last = place.split(".")
    node = plain
    for name in parents:
        node[name] = node.get(name) or {}
        node = node[name]
    node[last] = _node(target, folder) | ({"_partial_": True} if place in PARTIAL else {})
    if not _is_refused_by_the_check(OmegaConf.create(plain)):
        (folder / "sent").mkdir()
        (folder / "sent" / "config.yaml").write_text(yaml.safe_dump(plain))
        refused(run(folder, "train", "--from", "sent", "run_dir=run", seconds=SECONDS))
    _harmless(folder)


def typed(words: list[str], folder: Path) -> None:
    """A command line, refused when it is composed and checked, or by the run."""
    tiny = [word for word in TINY if "data=jsonl" not in words or not word.startswith("data.source")]
    words = [*tiny, *(word.replace(CANARY, str(folder / CANARY)) for word in words)]
    evil = json.dumps({"_target_": "os.system", "command": f"touch {folder / CANARY}"})
    try:
        is_refused = _is_refused_by_the_check(compose(words))
    except InputError:
        is_refused = True
    if not is_refused:
        refused(run(folder, *words, seconds=SECONDS, EVIL=evil))
    _harmless(folder)


def template(text: str, folder: Path) -> None:
    """A chat template in a file."""
    (folder / "chat.jinja").write_text(text.replace(CANARY, str(folder / CANARY)))
    typed(["data.chat_template=chat.jinja"], folder)


def pickled(make: Callable[[Path, bytes], list[str]], folder: Path) -> None:
    """Weights, adapters and data that are pickles."""
    typed(make(folder, pickle.dumps(Evil(folder / CANARY))), folder)


def _model(folder: Path, content: bytes) -> list[str]:
    shutil.copytree(POCKET, folder / "model")
    (folder / "model" / "model.safetensors").unlink()
    (folder / "model" / "pytorch_model.bin").write_bytes(content)
    return ["model.path=model"]


def _adapter(folder: Path, content: bytes) -> list[str]:
    (folder / "adapter").mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "pocket", "target_modules": ["q_proj"], "r": 2}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter" / "adapter_model.bin").write_bytes(content)
    return ["init_from=adapter", "peft=lora"]


def _renamed(folder: Path, content: bytes) -> list[str]:
    shutil.copytree(POCKET, folder / "model")
    (folder / "model" / "model.safetensors").write_bytes(content)
    return ["model.path=model"]


def _checkpoint(folder: Path, content: bytes) -> list[str]:
    (folder / "checkpoints" / "step-00000001").mkdir(parents=True)
    (folder / "checkpoints" / "step-00000001" / "state.ckpt").write_bytes(content)
    return ["resume=checkpoints/step-00000001"]


def _data(folder: Path, content: bytes) -> list[str]:
    (folder / "rows.jsonl").write_bytes(content)
    return ["data=jsonl", "data.path=rows.jsonl"]


def _remote_code(folder: Path, content: bytes) -> list[str]:
    shutil.copytree(POCKET, folder / "model")
    config = json.loads((folder / "model" / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "model" / "config.json").write_text(json.dumps(config))
    (folder / "model" / "evil.py").write_text(f"open({str(folder / CANARY)!r}, 'w')\n")
    return ["model.path=model"]


PICKLES = {
    "weights": _model,
    "an adapter": _adapter,
    "safetensors": _renamed,
    "a checkpoint": _checkpoint,
    "rows": _data,
    "no pickle but remote code": _remote_code,
}


@functools.cache
def _plain(choice: str) -> dict[str, Any]:
    """A whole config as a run saves it."""
    return OmegaConf.to_container(compose([*TINY, choice]), resolve=True)


def _node(target: str, folder: Path) -> dict[str, Any]:
    if target.startswith(("pandas", "numpy", "torch", "joblib", "pickle", "cloudpickle", "runpy", "lightning")):
        (folder / "PICKLE").write_bytes(pickle.dumps(Evil(folder / CANARY)))
    text = json.dumps(TARGETS[target])
    text = text.replace(CANARY, str(folder / CANARY)).replace("PICKLE", str(folder / "PICKLE"))
    return {"_target_": target, **json.loads(text)}


def _is_refused_by_the_check(cfg: DictConfig) -> bool:
    """Whether the checks that a run begins with refuse a config; it costs no process."""
    try:
        compat.check(schema.check(cfg))
    except InputError:
        return True
    return False


def _harmless(folder: Path) -> None:
    assert not (folder / CANARY).exists(), "the canary: the config ran what it named"
