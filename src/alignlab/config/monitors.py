"""Metrics that a config names: those that callbacks monitor, and the one whose best weights are kept."""

from collections.abc import Mapping
from typing import Any

from alignlab.config.build import build
from alignlab.config.sources import source_node
from alignlab.config.target import locate
from alignlab.errors import InputError, nearest
from alignlab.metrics import METRICS, Metric, Mode, best_mode, in_sets, is_known

Config = dict[str, Any]


def check_monitors(config: Config) -> None:
    """Check that the metrics that callbacks monitor, and whose best weights are kept, are logged by these names.

    Raises:
        InputError: A metric is unknown, or lacks its stage (``kl``, not ``val/kl``); a callback asks for the smallest
            value of a metric whose largest is the best; or ``checkpoint.best`` is not measured in validation.
    """
    known = known_metrics(config)
    for name, node in config["callbacks"].items():
        monitor, mode = ((node or {}).get(key) for key in ("monitor", "mode"))
        if monitor is None:
            continue
        refuse_unlogged(f"callbacks.{name}.monitor", monitor, known)
        right = best_mode(monitor, known)
        if mode is not None and right is not None and mode != right:
            asked = f"callbacks.{name}.monitor={monitor} callbacks.{name}.mode={mode}"
            which = {"min": "smallest", "max": "largest"}[right]
            raise InputError(asked, f"its {which} value is the best", f"Type callbacks.{name}.mode={right}")
    best = config["checkpoint"]["best"]
    if best is not None:
        refuse_unlogged("checkpoint.best", best, known)
        mode_of_best(config)


def known_metrics(config: Config) -> Mapping[str, Metric]:
    """The metrics of the project, of the method and of each held-out set, by name."""
    known = METRICS | locate(config["method"]["_target_"]).own_metrics
    source = build("data.source", source_node(config["data"]))
    return known | in_sets(known, getattr(source, "validation_sets", ()))


def refuse_unlogged(key: str, name: str, known: Mapping[str, Metric]) -> None:
    """Refuse a metric that is not logged by this name; ``checkpoint.best`` also one that no validation measures."""
    is_logged = "/" in name and is_known(name, known)
    if key == "checkpoint.best" and is_logged and not name.startswith("val/"):
        why = "the best weights are those of a validation, whose metrics begin with val/"
        raise InputError(f"{key}={name}", why, nearest(f"val/{name.removeprefix('train/')}", validated(known)))
    if not is_logged:
        instead = nearest(name, (metric if "/" in metric else f"val/{metric}" for metric in known))
        raise InputError(f"{key}={name}", "no such metric is logged", instead)


def validated(known: Mapping[str, Metric]) -> list[str]:
    """Names that metrics have in validation."""
    names = (name for name in known if not name.startswith(("train/", "progress/", "time/")))
    return [name if name.startswith("val/") else f"val/{name}" for name in names]


def mode_of_best(config: Config) -> Mode:
    """Whether the smallest or the largest value of ``checkpoint.best`` is the best.

    ``checkpoint.best_mode`` says so, or a callback that monitors the same metric, or the register of metrics.

    Raises:
        InputError: None of them does.
    """
    best, mode = (config["checkpoint"][key] for key in ("best", "best_mode"))
    monitors = (node or {} for node in config["callbacks"].values())
    monitored = [node["mode"] for node in monitors if node.get("monitor") == best and node.get("mode")]
    found = [mode, *monitored, best_mode(best, known_metrics(config))]
    if any(found):
        return next(filter(None, found))
    why = "its entry in metrics.py does not say whether its smallest or its largest value is the best"
    raise InputError(f"checkpoint.best={best}", why, "Type checkpoint.best_mode=min or checkpoint.best_mode=max")
