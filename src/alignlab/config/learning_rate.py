"""The learning rate of a run whose config leaves it open: that published for its method."""

from typing import Any

from alignlab.config.target import locate
from alignlab.errors import InputError
from alignlab.optim.rates import SMALL_MODEL, SUPERVISED


def with_learning_rate(config: dict[str, Any]) -> dict[str, Any]:
    """Replace ``optimizer.lr: null`` by the rate of the method, for full weights or for an adapter.

    The embedded model and models from scratch are small, and get a larger one.

    Args:
        config: Plain and resolved.

    Returns:
        The config, a copy if anything was replaced.
    """
    optimizer = config.get("optimizer")
    if not isinstance(optimizer, dict) or optimizer.get("lr", "given") is not None:
        return config
    try:
        rates = locate(config["method"]["_target_"]).learning_rates
    except (InputError, KeyError, TypeError, AttributeError):
        rates = SUPERVISED  # a wrong method is reported by the check of targets, and the rate should not be too
    rate = rates.full if config.get("peft") is None else rates.adapter
    rate = SMALL_MODEL if _is_small(config.get("model")) else rate
    return config | {"optimizer": optimizer | {"lr": rate}}


def _is_small(model: Any) -> bool:
    """Whether a model is the embedded one, or has a config of its own instead of a path."""
    return isinstance(model, dict) and model.get("path", "pocket") == "pocket"
