"""Compose a config from a command line by Hydra, with ``experiments`` and ``sweeps`` on its search path."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hydra
import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from alignlab.cli.composition.help import help_page
from alignlab.cli.composition.hydra_settings import check_settings
from alignlab.cli.composition.refusals import dotted_keys, explain, instead_of_flag, let_keys_be_new, parse
from alignlab.config.resolve import limit_resolvers
from alignlab.errors import InputError

PACKAGE = Path(__file__).resolve().parents[2]
ROOT = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parents[1]
"""Folder of ``conf``, ``experiments`` and ``sweeps``: the package if it is installed, otherwise the repository."""

MODEL_PAIRS = ("pair/model@_global_", "pair/rollout@_global_")
"""Groups in ``conf/train.yaml`` of settings for a method and for a sampler on a model."""

ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, OSError)
"""Errors that Hydra and OmegaConf raise for a wrong command line or config file: for example ``ValueError`` for
``group=false``, ``TypeError`` for ``+group=[1]``, and ``OSError`` for a file that holds a single number."""


class NamedRuns(FileConfigSource):
    """Config source of the groups ``experiments`` and ``sweeps`` beside ``conf``; other files there are ignored."""

    GROUPS = ("experiments", "sweeps")

    @staticmethod
    def scheme() -> str:
        """Prefix of search paths of this kind."""
        return "alignlab"

    def is_group(self, config_path: str) -> bool:
        """Whether the path is a group."""
        return config_path.split("/")[0] in ("", *self.GROUPS) and super().is_group(config_path)

    def is_config(self, config_path: str) -> bool:
        """Whether the path is an option."""
        return config_path.split("/")[0] in self.GROUPS and super().is_config(config_path)


class SearchPath(SearchPathPlugin):
    """Adds ``experiments``, ``sweeps`` and a run to repeat to Hydra's search path, for any working directory."""

    run_to_repeat: Path | None = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the paths; Hydra calls this before it composes."""
        search_path.append("alignlab", f"{NamedRuns.scheme()}://{ROOT}")
        if self.run_to_repeat is not None:
            search_path.append("alignlab", f"file://{self.run_to_repeat}")


for plugin in (NamedRuns, SearchPath):
    Plugins.instance().register(plugin)
limit_resolvers()
check_settings()


def compose(words: Sequence[str] = (), config_name: str = "train", config_dir: str | None = None) -> DictConfig:
    """Compose a config as the command line does, without running anything.

    Args:
        words: ``group=option`` and ``key=value``.
        config_name: Name of the root config in ``conf``.
        config_dir: Folder of further options.

    Raises:
        InputError: A word or a config file is wrong.
    """
    with _vocabulary(words, config_name, config_dir) as (words, groups):
        try:
            return hydra.compose(config_name, _for_hydra(words, groups, config_name))
        except ERRORS as error:
            raise explain(error, words, groups) from error


def prepare(words: Sequence[str], config_name: str = "train", config_dir: str | None = None) -> list[str]:
    """Prepare overrides for Hydra's own command line; see ``let_keys_be_new``."""
    with _vocabulary(words, config_name, config_dir) as (_, groups):
        return _for_hydra(words, groups, config_name)


def _for_hydra(words: Sequence[str], groups: "ConfigGroups", config_name: str) -> list[str]:
    """Allow new keys, and drop the settings that were tuned for the named model if ``model.path`` is typed."""
    own_weights = config_name in ("train", "estimate") and any(word.startswith("model.path=") for word in words)
    return let_keys_be_new(words, groups) + ([f"~{pair}" for pair in MODEL_PAIRS] if own_weights else [])


def typed_words(overrides: Sequence[str]) -> list[str]:
    """Overrides as they were typed, from those that were prepared for Hydra."""
    return [word.removeprefix("++") for word in overrides if word.removeprefix("~") not in MODEL_PAIRS]


def page(config_name: str, config_dir: str | None = None) -> str:
    """The help of a verb.

    Args:
        config_name: Name of the verb's root config.
        config_dir: Folder of further options.
    """
    name = "train" if config_name == "repeat" else config_name
    with _vocabulary([], name, config_dir) as (_, groups):
        return help_page((ROOT / "conf" / "hydra" / "help" / f"{name}.yaml").read_text(encoding="utf-8"), groups)


def refusal(error: Exception, words: Sequence[str], config_name: str, config_dir: str | None = None) -> Exception:
    """Make the error to show if Hydra's command line failed; see ``explain``."""
    with _vocabulary(words, config_name, config_dir) as (words, groups):
        return explain(error, words, groups)


def no_such_flag(words: Sequence[str], flags: Sequence[str], config_name: str) -> InputError:
    """Make the error for flags that do not exist, the first of which is advised on; see ``instead_of_flag``."""
    with _vocabulary([], config_name, None) as (_, groups):
        return InputError(" ".join(words), "there is no such flag", instead_of_flag(words[0], flags, groups))


@dataclass(frozen=True)
class ConfigGroups:
    """The groups on the search path; implements ``Vocabulary``.

    Args:
        loader: Hydra's config loader.
        folders: Overrides that name further folders, if any.
        config_name: Name of the verb's root config.
    """

    loader: ConfigLoader
    folders: list[str]
    config_name: str

    def groups(self, parent: str = "") -> list[str]:
        """Groups inside a group, or at the root."""
        return self.loader.get_group_options(parent, ObjectType.GROUP, overrides=self.folders)

    def options(self, group: str) -> list[str]:
        """Options of a group."""
        return self.loader.get_group_options(group, ObjectType.CONFIG, overrides=self.folders)

    def keys(self, words: Sequence[str]) -> set[str]:
        """Dotted keys of the config that some words compose; those without the words if they do not compose."""
        try:
            cfg = hydra.compose(self.config_name, let_keys_be_new(words, self))
        except ERRORS:
            cfg = hydra.compose(self.config_name)
        return set(dotted_keys("", cfg))


@contextmanager
def _vocabulary(
    words: Sequence[str], config_name: str, config_dir: str | None
) -> Iterator[tuple[list[str], ConfigGroups]]:
    """Initialise Hydra; yield the words, with the folder of further options, and the groups on the search path."""
    if config_dir is not None:
        words = [*words, f"hydra.searchpath=['file://{Path(config_dir).resolve()}']"]
    folders = [word for word in words if word.startswith("hydra.searchpath=")]
    for word in folders:
        value = override.value() if (override := parse(word)) else None
        if not (isinstance(value, list) and all(isinstance(folder, str) for folder in value)):
            raise InputError(word, "it should be a list of folders", "Type hydra.searchpath=[file:///FOLDER]")
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield list(words), ConfigGroups(GlobalHydra.instance().config_loader(), folders, config_name)
