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

from alignlab import compat, schema
from alignlab.cli.composition.compose import compose
from alignlab.errors import InputError
from alignlab.models.places import POCKET
from tests.commands import QUIET
from tests.faults.cases import Case
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

PLACES = (
    "callbacks.evil", "logger.evil", "method.reward.evil", "method.loss", "optimizer", "scheduler", "model", "peft",
    "peft.quantization", "data.source", "rollout", "trainer", "trainer.profiler", "method", "method.divergence",
)  # fmt: skip
"""Nodes of a config that name what is made."""

CHOICE_OF = {
    "method.reward.evil": "method=grpo",
    "rollout": "method=grpo",
    "method.divergence": "method=dpo",
    "peft.quantization": "peft=qlora",
}
"""Choice that brings a place into the config; SFT has the others."""

PARTIAL = ("optimizer", "scheduler", "method.loss")
"""Places that hold a function with some of its arguments."""

CANARY = "CANARY"
"""In the arguments below this stands for the file that must not appear, and PICKLE for one that would make it."""

TARGETS: dict[str, dict[str, Any]] = {
    "os.system": {"command": "touch CANARY"},
    "posix.system": {"command": "touch CANARY"},
    "subprocess.run": {"args": ["touch", "CANARY"]},
    "subprocess.Popen": {"args": ["touch", "CANARY"]},
    "builtins.open": {"file": "CANARY", "mode": "w"},
    "builtins.exec": {"_args_": ["open('CANARY', 'w')"]},
    "builtins.eval": {"_args_": ["open('CANARY', 'w')"]},
    "io.open": {"file": "CANARY", "mode": "w"},
    "codecs.open": {"filename": "CANARY", "mode": "w"},
    "gzip.open": {"filename": "CANARY", "mode": "wb"},
    "sqlite3.connect": {"database": "CANARY"},
    "dbm.dumb.open": {"file": "CANARY", "flag": "n"},
    "cProfile.run": {"statement": "open('CANARY', 'w')"},
    "profile.run": {"statement": "open('CANARY', 'w')"},
    "timeit.timeit": {"stmt": "open('CANARY', 'w')", "number": 1},
    "trace.Trace.run": {"self": None, "cmd": "open('CANARY', 'w')"},
    "code.interact": {"banner": "x"},
    "pdb.run": {"statement": "open('CANARY', 'w')"},
    "bdb.Bdb.run": {"self": None, "cmd": "open('CANARY', 'w')"},
    "doctest.run_docstring_examples": {"f": None, "globs": {}},
    "logging.FileHandler": {"filename": "CANARY"},
    "logging.basicConfig": {"filename": "CANARY"},
    "logging.config.dictConfig": {
        "config": {"version": 1, "handlers": {"f": {"class": "logging.FileHandler", "filename": "CANARY"}}}
    },
    "pathlib.Path.touch": {"self": "CANARY"},
    "pathlib.Path.write_text": {"self": "CANARY", "data": "x"},
    "shutil.copy": {"src": "/etc/hostname", "dst": "CANARY"},
    "tempfile.mkdtemp": {"prefix": "x"},
    "urllib.request.urlretrieve": {"url": "file:///etc/hostname", "filename": "CANARY"},
    "zipfile.ZipFile": {"file": "CANARY", "mode": "w"},
    "tarfile.open": {"name": "CANARY", "mode": "w"},
    "multiprocessing.Process": {},
    "asyncio.create_subprocess_shell": {"cmd": "touch CANARY"},
    "runpy.run_path": {"path_name": "PICKLE"},
    "importlib.import_module": {"name": "antigravity"},
    "pickle.load": {"file": "PICKLE"},
    "shelve.open": {"filename": "CANARY"},
    "functools.partial": {"_args_": ["x"]},
    "operator.methodcaller": {"_args_": ["system"]},
    "ctypes.CDLL": {"name": None},
    "mailbox.Maildir": {"dirname": "CANARY"},
    "cgitb.enable": {},
    "compileall.compile_dir": {"dir": "."},
    "torch.os.system": {"command": "touch CANARY"},
    "torch.serialization.os.system": {"command": "touch CANARY"},
    "transformers.utils.os.system": {"command": "touch CANARY"},
    "numpy.os.system": {"command": "touch CANARY"},
    "alignlab.data.cache.os.system": {"command": "touch CANARY"},
    "alignlab.training.storage.shutil.rmtree": {"path": "CANARY"},
    "alignlab.training.storage.write_text": {"path": "CANARY", "text": "x"},
    "alignlab.build.functools.partial": {"_args_": ["x"]},
    "alignlab.cli.main.main": {"words": ["train"]},
    "pandas.read_pickle": {"filepath_or_buffer": "PICKLE"},
    "pandas.DataFrame.to_csv": {"self": None, "path_or_buf": "CANARY"},
    "numpy.load": {"file": "PICKLE", "allow_pickle": True},
    "numpy.save": {"file": "CANARY", "arr": [1]},
    "torch.load": {"f": "PICKLE", "weights_only": False},
    "torch.save": {"obj": 1, "f": "CANARY"},
    "torch.hub.load": {"repo_or_dir": ".", "model": "x", "source": "local"},
    "torch.utils.cpp_extension.load_inline": {"name": "x", "cpp_sources": "int f(){return 1;}"},
    "sympy.sympify": {"a": "__import__('os').system('touch CANARY')"},
    "joblib.load": {"filename": "PICKLE"},
    "cloudpickle.load": {"file": "PICKLE"},
    "yaml.unsafe_load": {"stream": "!!python/object/apply:os.system ['touch CANARY']"},
    "hydra.utils.instantiate": {"config": {"_target_": "os.system", "command": "touch CANARY"}},
    "datasets.load_dataset": {"path": "csv", "data_files": "CANARY"},
    "transformers.pipeline": {"task": "text-generation"},
    "lightning.fabric.utilities.cloud_io.torch.load": {"f": "PICKLE", "weights_only": False},
    "fsspec.open": {"urlpath": "CANARY", "mode": "w"},
    "setuptools.sandbox.run_setup": {"setup_script": "x", "args": []},
    "pip._internal.cli.main.main": {"args": ["--version"]},
    "wandb.sdk.lib.filesystem.mkdir_exists_ok": {"dir_name": "CANARY"},
    "matplotlib.pyplot.savefig": {"fname": "CANARY"},
}
"""Callables that a config could name, with arguments that leave a trace."""

REWARDS = (
    "os:system",
    "subprocess:run",
    "builtins:exec",
    "shutil:rmtree",
    "posix:system",
    "pathlib:Path",
    "os.path:os.system",
)
"""``method.reward.python.path`` takes functions of one's own, never the standard library's."""

TEXTS = {
    "a node made of a text": "callbacks.evil=${oc.create:'{_target_: logging.FileHandler, filename: CANARY}'}",
    "a text resolved twice": "tags=['${oc.create:\"{_target_: builtins.open, file: CANARY, mode: w}\"}']",
    "nested interpolation": "callbacks.evil._target_=${oc.decode:${oc.env:EVIL}}",
    "a resolver that there is not": "run_dir=${python:1}",
    "a resolver for the seed": "seed=${eval:1+1}",
    "a node in a list": "tags=[{_target_: os.system, command: touch CANARY}]",
    "a target in the data's columns": "data.columns={_target_: os.system}",
    "a dunder": "optimizer._target_=torch.optim.AdamW.__init__.__globals__",
    "a module": "optimizer._target_=torch.optim",
    "a relative name": "optimizer._target_=.os.system",
    "an empty name": "optimizer._target_=''",
    "a list for a name": "optimizer._target_=[os.system]",
    "arguments by place": "+optimizer._args_=['touch CANARY']",
}

TEMPLATES = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "raise": "{{ raise_exception.__globals__['__builtins__']['open']('CANARY', 'w') }}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "long text": "{{ 'a' * 10000000000 }}",
    "long range": "{{ range(1000000000) | list | length }}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "power": "{{ (9 ** 9 ** 9) % 7 }}",
    "padding": "{{ 'a'.ljust(9000000000) }}",
    "import": "{% include '/etc/passwd' %}",
    "division": "{{ 1 / 0 }}",
}


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
