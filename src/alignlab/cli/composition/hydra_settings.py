"""Checks of Hydra's own settings, which config files may change too: settings that would run programs are refused."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra._internal import hydra as hydra_main
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from alignlab.cli.composition.refusals import parse
from alignlab.config.target import locate
from alignlab.errors import InputError, raise_all

HYDRA_PLUGINS = "hydra._internal.core_plugins."
"""Package of Hydra's own launchers and sweepers."""

NO_SWEEP = "hydra.mode=RUN"
"""What Hydra adds to the words of a command that is no sweep."""

KINDS = {"hydra.launcher": Launcher, "hydra.sweeper": Sweeper, "hydra.callbacks": Callback}
LOGGING = ("hydra.job_logging", "hydra.hydra_logging")
HANDLERS = ("logging.StreamHandler", "logging.NullHandler")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")

COMMANDS = (
    *("hydra.job.env_set", "hydra.launcher.setup", "hydra.launcher.python", "hydra.launcher.srun_args"),
    *("hydra.launcher.additional_parameters", "hydra.launcher.env_set"),
)
"""Settings that a shell or the program loader reads; they are accepted on the command line only."""


class CheckedLoader(ConfigLoaderImpl):
    """Hydra's config loader, with a check of Hydra's settings before Hydra uses them.

    Hydra composes a command twice, at first only to see whether it is a sweep. If it is none, the first config is used.
    """

    composed: tuple[str | None, list[str], DictConfig] | None = None

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose a config, and refuse settings that would run programs."""
        words = [word for word in overrides if word != NO_SWEEP]
        composed, self.composed = self.composed, None  # Hydra changes a config, so it serves once
        if run_mode == RunMode.RUN and composed is not None and composed[:2] == (config_name, words):
            parsed = OverridesParser.create().parse_overrides(words)
            self.validate_sweep_overrides_legal(parsed, run_mode, from_shell)
            return composed[2]
        cfg = super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        refuse_programs(OmegaConf.to_container(cfg.hydra, resolve=False), overrides)
        if run_mode == RunMode.MULTIRUN and not validate_sweep_overrides:
            self.composed = config_name, words, cfg
        return cfg


def check_settings() -> None:
    """Replace Hydra's config loader by ``CheckedLoader`` in this process; Hydra has no setting for that."""
    hydra_main.ConfigLoaderImpl = CheckedLoader


def refuse_programs(settings: Mapping[str, Any], words: Sequence[str]) -> None:
    """Refuse settings of Hydra that would run programs.

    Args:
        settings: The node ``hydra``, as plain unresolved containers.
        words: Overrides as typed.

    Raises:
        InputError: A target is not of the type that Hydra expects, logging would create other objects than streams, or
            a file sets a command.
    """
    overrides = [override for word in words if (override := parse(word)) is not None]
    typed = [override.key_or_group for override in overrides]
    found = list(_leaves("hydra", settings))
    faults = [fault for path, value in found if path.endswith("._target_") and (fault := _wrong_target(path, value))]
    faults += [fault for path, value in found if path.startswith(LOGGING) and (fault := _wrong_logging(path, value))]
    for path, value in found:
        given = any(path == key or path.startswith(f"{key}.") for key in typed)
        if path.startswith(COMMANDS) and value not in (None, [], {}, "") and not given:
            key = next(command for command in COMMANDS if path.startswith(command))
            why = "a setting that a shell or the program loader reads is not accepted in a file"
            faults.append(InputError(f"{path}={value}", why, f"Type {key}=VALUE on the command line"))
    raise_all(faults)


def _leaves(path: str, node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, list):
        node = {str(index): value for index, value in enumerate(node)}
    if not isinstance(node, Mapping):
        yield path, node
        return
    for key, value in node.items():
        yield from _leaves(f"{path}.{key}", value)


def _wrong_target(path: str, name: Any) -> InputError | None:
    key = path.removesuffix("._target_")
    kind = KINDS.get(key) or (KINDS["hydra.callbacks"] if key.startswith("hydra.callbacks.") else None)
    try:
        if key == "hydra.sweeper.sampler":
            kind = locate("optuna.samplers.BaseSampler")
        if str(name).startswith(HYDRA_PLUGINS):
            target = getattr(importlib.import_module(str(name).rpartition(".")[0]), str(name).rpartition(".")[2], None)
        else:
            target = locate(name)
    except InputError as error:
        return InputError(f"{key}.{error.asked}", error.why, error.instead)
    if kind is not None and isinstance(target, type) and issubclass(target, kind):
        return None
    wanted = f"it should be a {kind.__module__}.{kind.__name__}" if kind else "this key takes no object"
    return InputError(f"{path}={name}", wanted, f"Remove {key}")


def _wrong_logging(path: str, value: Any) -> InputError | None:
    key, text = path.rpartition(".")[2], str(value)
    makes = key == "()" or (key == "class" and text not in HANDLERS)
    if not makes and not (text.startswith(("ext://", "cfg://")) and text not in STREAMS):
        return None
    instead = f"Handlers are {' and '.join(HANDLERS)}"
    return InputError(f"{path}={value}", "logging would create an object from it", instead)
