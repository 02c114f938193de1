"""The same from Python, for notebooks and scripts: ``alignlab.train(["method=dpo", …])``, ``alignlab.evaluate(…)``."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab import run
from alignlab.assemble import make_model_source
from alignlab.cli import evaluate as evaluation
from alignlab.cli.composition.compose import compose as composed
from alignlab.cli.composition.paths import path_as_key
from alignlab.cli.train import checked
from alignlab.config.target import locate
from alignlab.errors import InputError
from alignlab.evaluation.results import by_name
from alignlab.measures.estimates import Estimate
from alignlab.run_folder.metrics_file import read_metrics

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Run:
    """A run folder, as ``train`` returns it; ``Run(path)`` opens an earlier one.

    Args:
        path: The folder.
    """

    path: Path

    def __post_init__(self):
        object.__setattr__(self, "path", Path(self.path).absolute())
        if not (self.path / "config.yaml").is_file():
            raise InputError(f"Run({str(self.path)!r})", "there is no config.yaml in it", "Name the folder of a run")

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config."""
        return run.read_config(self.path / "config.yaml")

    @property
    def metrics(self) -> list[dict[str, float]]:
        """One row per logged step, with the metrics that it logged; ``pandas.DataFrame(run.metrics)`` is a table."""
        return read_metrics(self.path / "metrics.csv")

    @property
    def summary(self) -> dict[str, Any]:
        """The content of ``summary.json``: status, results before and after, cost."""
        return json.loads((self.path / "summary.json").read_text(encoding="utf-8"))

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Load the tokenizer of the trained model, with its chat template."""
        return self._source().load_tokenizer()

    def model(self) -> "PreTrainedModel | PeftModel":
        """Load the trained model, with its adapter if it has one, in eval mode on the CPU."""
        head = locate(self.config["method"]["_target_"]).head
        return self._source().load_model(self.tokenizer(), head=head).eval()

    def _source(self) -> Any:
        return make_model_source(self.config | {"init_from": str(self.path)})


def compose(words: Sequence[str] = ()) -> dict[str, Any]:
    """Compose and check a config, without running anything.

    Args:
        words: ``group=option`` and ``key=value``, as on the command line.

    Returns:
        The resolved config as plain containers.

    Raises:
        InputError: A word is wrong, or settings cannot be combined.
    """
    return checked(composed(words), words)


def train(words: Sequence[str] = ()) -> Run:
    """Train, as ``alignlab train WORDS`` does.

    Args:
        words: ``group=option`` and ``key=value``.

    Returns:
        The finished run.

    Raises:
        InputError: A word, the data or the model is wrong.
        RunError: The run could not continue.
    """
    return Run(run.fit(compose(words), shlex.join(["alignlab", "train", *words])))


def evaluate(words: Sequence[str]) -> dict[str, Estimate]:
    """Measure a model, as ``alignlab evaluate WORDS`` does.

    Args:
        words: A model, ``group=option`` and ``key=value``.

    Returns:
        Means with their intervals, as ``METRIC``, and those of a named set of rows as ``SET/METRIC``.

    Raises:
        InputError: A word, the data or the model is wrong.
    """
    config = evaluation.check(composed(path_as_key(words, "from"), "evaluate"))
    return by_name(evaluation.measured(config)[0])
