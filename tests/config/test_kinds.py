"""A config is not a program: each place takes its kind of object, and nothing of the standard library, uncalled."""

import importlib
import inspect
import sys
import warnings

import pytest

from alignlab.cli.composition.compose import compose
from alignlab.config import schema
from alignlab.config.build import build
from alignlab.config.kinds import EXPECTED_KINDS, FORBIDDEN, root_module
from alignlab.config.target import checked_target, locate
from alignlab.errors import InputError
from alignlab.methods.dpo import DPO
from alignlab.methods.sft import SFT

ACTS_WHEN_IMPORTED = {"antigravity", "this", "idlelib", "lib2to3", "turtle", "turtledemo", "tkinter"}
AROUND = {"method.loss": (SFT, "loss"), "method.divergence": (DPO, "divergence"), "method.loss.mine": (DPO, "loss")}
"""Places whose kind is what the argument there is annotated with."""

EVERY_PLACE = [(name.replace("*", "mine"), None, "") for name in EXPECTED_KINDS]
EVERY_PLACE += [(name, around, argument) for name, (around, argument) in AROUND.items()]
EVERY_PLACE += [("model.config", None, ""), ("tags.0", None, ""), ("data", None, ""), ("strategy.config.x", None, "")]

DEEPER = [
    *("importlib.metadata.version", "concurrent.futures.ThreadPoolExecutor", "logging.config.dictConfig"),
    *("logging.handlers.SocketHandler", "multiprocessing.pool.Pool", "urllib.request.urlretrieve", "xml.sax.parse"),
    *(
        "pathlib.Path.touch",
        "pathlib.Path.unlink",
        "os.path.exists",
        "unittest.mock.patch",
        "http.client.HTTPConnection",
    ),
    *("email.message_from_file", "ctypes.util.find_library", "distutils.spawn.spawn", "encodings.idna.encode"),
    *("wsgiref.simple_server.make_server", "xmlrpc.client.ServerProxy", "dbm.dumb.open", "sqlite3.dbapi2.connect"),
]
OTHERS = [
    *("pandas.read_pickle", "sympy.sympify", "torch.load", "torch.save", "torch.hub.load", "torch.jit.load"),
    *("torch.utils.cpp_extension.load", "torch.utils.cpp_extension.load_inline", "numpy.load", "numpy.save"),
    *("numpy.fromfile", "transformers.pipeline", "transformers.AutoModel.from_pretrained", "datasets.load_dataset"),
    *("datasets.load_from_disk", "safetensors.torch.save_file", "joblib.load", "cloudpickle.loads", "dill.loads"),
    *("setuptools.setup", "setuptools.sandbox.run_setup", "pip.main", "pip._internal.cli.main.main", "yaml.load"),
    *("hydra.utils.instantiate", "hydra.utils.call", "omegaconf.OmegaConf.load", "deepspeed.launcher.runner.main"),
    *("torch.distributed.run.main", "torch.distributed.launcher.api.elastic_launch", "torch.multiprocessing.spawn"),
    *("torch.os.system", "transformers.utils.os.system", "numpy.os.remove"),
    "alignlab.config.target.importlib.import_module",
    *("alignlab.run.fit", "alignlab.cli.main.main", "alignlab.system.disk.write_text", "alignlab.config.build.build"),
    *("alignlab.distributed.launch.launch", "alignlab.distributed.strategies.sharding_of", "wandb.init"),
    *("huggingface_hub.upload_file", "fsspec.open", "accelerate.launch", "torch.package.PackageImporter"),
    *("matplotlib.pyplot.savefig", "pydantic.ImportString", "lightning.pytorch.cli.LightningCLI", "subprocess"),
    *("torch.nn.Linear.__init__.__globals__", "alignlab", "torch", "torch.float32", "builtins.eval", "__main__.x"),
]  # fmt: skip


def refused(path: str, place: str, around, argument: str) -> bool:
    for partial in (False, True):
        try:
            checked_target(place, {"_target_": path, "_partial_": partial}, around, argument)
        except InputError:
            continue
        return False
    return True


def can_be_located(path: str) -> bool:
    try:
        return bool(locate(path))
    except InputError:
        return False


def names_of_the_standard_library():
    """``module.name`` of every public callable, methods of classes included."""
    for module in sorted(sys.stdlib_module_names - ACTS_WHEN_IMPORTED):
        try:
            with warnings.catch_warnings(action="ignore"):
                found = importlib.import_module(module)
        except ImportError:  # of another system
            continue
        for name, value in vars(found).items():
            if callable(value) and not name.startswith("__"):
                yield f"{module}.{name}"
                if inspect.isclass(value):
                    yield from (f"{module}.{name}.{method}" for method in vars(value) if not method.startswith("__"))


def test_the_standard_library_is_refused_everywhere():
    names = [*names_of_the_standard_library(), *DEEPER]
    assert len(names) > 8000
    assert [path for path in names if not refused(path, *EVERY_PLACE[0])] == []
    few = names[::23] + DEEPER
    assert [(path, place) for path in few for place, *around in EVERY_PLACE if not refused(path, place, *around)] == []


def test_no_alias_leads_to_the_standard_library():
    """What our packages and those under them have imported can be named, and is refused."""
    packages = ("alignlab", "lightning", "peft", "transformers.utils", "torch.utils", "torch.optim", "numpy")
    modules = [name for name in sys.modules if name.startswith(packages) and "__" not in name]
    paths = [
        f"{module}.{name}"
        for module in modules
        for name, value in list(vars(sys.modules[module]).items())
        if not name.startswith("__")
        and root_module(value) in FORBIDDEN
        and (callable(value) or inspect.ismodule(value))
    ]
    assert len(paths) > 1000
    assert list(filter(can_be_located, paths)) == []


@pytest.mark.parametrize("path", OTHERS)
def test_what_runs_reads_or_writes_is_refused_in_every_place(path):
    assert [place for place, *around in EVERY_PLACE if not refused(path, place, *around)] == []


def test_nothing_is_called_before_it_is_refused(tmp_path, monkeypatch):
    (tmp_path / "acting.py").write_text(ACTING)
    monkeypatch.syspath_prepend(tmp_path)
    for place, *around in EVERY_PLACE:
        for name in ("act", "Acting", "acting_loss"):
            assert refused(f"acting.{name}", place, *around)
            with pytest.raises(InputError):
                build(place, {"_target_": f"acting.{name}", "path": str(tmp_path / "made")})
    node = {"_target_": "lightning.Trainer", "max_epochs": 1, "profiler": {"_target_": "acting.act"}}
    with pytest.raises(InputError, match=r"trainer.profiler._target_=acting.act"):
        build("trainer", node)
    assert not (tmp_path / "made").exists()


ACTING = """
def act(path="made"):
    open(path, "w")

class Acting:
    def __init__(self, path="made"):
        open(path, "w")

def acting_loss(token_logps, path="made") -> None:
    open(path, "w")
"""

MINE = """
import lightning
import torch
from torch import Tensor
from alignlab.types.loss import LossTerm
from alignlab.methods.sft import SFT

class Callback(lightning.Callback): ...
class Logger(lightning.pytorch.loggers.CSVLogger): ...
class Optimizer(torch.optim.SGD): ...
class Schedule(torch.optim.lr_scheduler.ConstantLR): ...
class Profiler(lightning.pytorch.profilers.SimpleProfiler): ...
class Method(SFT): ...

def make_logger(*, save_dir: str) -> Logger:
    return Logger(save_dir)

def schedule(optimizer, *, num_training_steps) -> Schedule: ...
def loss(token_logps, owner, num_sequences, *, reduction) -> LossTerm: ...
def pair_loss(pairs, *, beta) -> Tensor: ...
def reward(completions, prompts, **columns): ...

class Reward:
    def __call__(self, completions, prompts, **columns): ...

class Source:
    def rows(self, split): ...
    def fingerprint(self): ...

class Weights:
    def load_model(self, tokenizer, quantization=None, head="language_model"): ...
    def load_tokenizer(self, texts=None): ...
"""


@pytest.mark.parametrize(
    ("place", "name", "partial"),
    [
        ("callbacks.mine", "Callback", False),
        ("logger.mine", "Logger", False),
        ("logger.mine", "make_logger", False),
        ("optimizer", "Optimizer", True),
        ("scheduler", "Schedule", True),
        ("scheduler", "schedule", True),
        ("method", "Method", False),
        ("method.loss", "loss", True),
        ("method.loss.mine", "pair_loss", True),
        ("method.divergence", "pair_loss", True),
        ("method.reward.mine", "reward", True),
        ("method.reward.mine", "Reward", False),
        ("data.source", "Source", False),
        ("data.source.sources.a", "Source", False),
        ("model", "Weights", False),
    ],
)
def test_a_class_or_function_of_ones_own_needs_no_permission(place, name, partial, tmp_path, monkeypatch):
    (tmp_path / "ownlab.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    node, around = {"_target_": f"ownlab.{name}", "_partial_": partial}, AROUND.get(place, (None, ""))
    assert checked_target(place, node, *around).__name__ == name
    with pytest.raises(InputError, match=f"{place}._partial_={str(partial).lower()}"):
        checked_target(place, node | {"_partial_": not partial}, *around)


@pytest.mark.parametrize(
    "words",
    [
        ["trainer.profiler._target_=lightning.pytorch.profilers.SimpleProfiler"],
        ["logger.mine._target_=lightning.pytorch.loggers.CSVLogger", "logger.mine.save_dir=logs"],
        ["optimizer._target_=torch.optim.Adamax"],
        ["method=dpo", "method.divergence._target_=alignlab.losses.divergence.forward_kl"],
    ],
)
def test_what_an_argument_is_annotated_with_may_stand_there(words):
    schema.check(compose(words))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("tags=[{_target_: torch.optim.AdamW}]", "tags.0._target_=torch.optim.AdamW: this key takes no object"),
        ("trainer._target_={}", "it is not a dotted path"),
        ("trainer._target_=5", "it is not a dotted path"),
        ("optimizer._target_=torch..AdamW", "it is not a dotted path"),
        ("strategy._target_=torch.optim.AdamW", "strategy._target_"),
        ("data._target_=alignlab.data.sources.arithmetic.Arithmetic", "this key takes no object"),
        ("trainer._args_=[1]", "arguments are given by name"),
        ("method._recursive_=false", "arguments are given by name"),
        ("method._convert_=all", "arguments are given by name"),
        ("optimizer._partial_=false", "training calls it. Type optimizer._partial_=true"),
        ("trainer._partial_=true", "it is made when the run starts"),
        ("method.loss._target_=torch.save", "annotated to return LossTerm"),
        ("callbacks.mine._target_=torch.optim.AdamW", "it should be a lightning.Callback"),
    ],
)
def test_refusals_name_the_place_and_what_it_takes(word, said):
    words = [word] if not word.startswith(("optimizer._target_=torch..",)) else ["optimizer._target_='torch..AdamW'"]
    with pytest.raises(InputError) as caught:
        schema.check(compose(words))
    assert said in str(caught.value)


def test_nothing_of_the_standard_library_is_even_imported():
    sys.modules.pop("turtledemo", None)
    with pytest.raises(InputError, match="standard library"):
        locate("turtledemo.main")
    assert "turtledemo" not in sys.modules
