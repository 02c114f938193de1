"""What a config could name or say to run something: callables by place, references, texts and templates."""

from typing import Any

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
    "alignlab.data.table.cache.os.system": {"command": "touch CANARY"},
    "alignlab.run_folder.storage.shutil.rmtree": {"path": "CANARY"},
    "alignlab.run_folder.storage.write_text": {"path": "CANARY", "text": "x"},
    "alignlab.config.build.functools.partial": {"_args_": ["x"]},
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
