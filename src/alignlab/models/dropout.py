"""Dropout of a model itself, as its config sets it; that of an adapter (``peft.lora_dropout``) is not touched.

Dropout makes the scores of the same weights random. A method that compares the policy's scores with those of a
reference, of the sampler or of another completion would then see differences that no weight explains: ratios other
than 1 on fresh samples, and a margin before the first update.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.modules.dropout import _DropoutNd as Dropout
from transformers import PreTrainedModel

log = logging.getLogger(__name__)

RATES = ("dropout", "pdrop")
"""Parts of the names of rates in configs, and in the layers that pass them to functions."""

OTHER_NOISE = ("layerdrop", "drop_path", "drop_prob", "jitter")
"""Rates of other noise in training (skipped layers, noise before a router), which only a rate of 0 changes."""


REMEMBERED = "_alignlab_rates"
"""Attribute of a model: the rates that its config had, as (config, name, rate)."""


def set_dropout(model: PreTrainedModel, rate: float | None) -> None:
    """Set the rate of every dropout of a model in place. Saved within ``rates_of_files``, its config is as before.

    Args:
        model: Without an adapter, whose dropout would be changed too.
        rate: At least 0, below 1; 0 also turns off other noise. ``None`` leaves the model as it is.
    """
    if rate is None:
        return
    words = RATES if rate else (*RATES, *OTHER_NOISE)
    # Some architectures (Falcon, GPT-J) read the config in every forward, the others once, when they are built.
    configs = {id(config): config for config in (model.config, model.config.get_text_config())}
    in_configs = [place for config in configs.values() for place in _rates(config, words)]
    in_modules = [place for module in model.modules() for place in _rates(module, words)]
    before = {f"{getattr(holder, name):g}": None for holder, name in in_modules}
    setattr(model, REMEMBERED, [(config, name, getattr(config, name)) for config, name in in_configs])
    for holder, name in in_configs + in_modules:
        setattr(holder, name, rate)
    before.pop(f"{rate:g}", None)
    if before:
        log.info("dropout of the model: %g instead of %s; model.dropout=RATE sets it", rate, ", ".join(before))


@contextmanager
def rates_of_files(model: PreTrainedModel) -> Iterator[None]:
    """Put the rates that the config had before ``set_dropout`` into it within the context, to save it with them."""
    files = getattr(model, REMEMBERED, [])
    now = [(config, name, getattr(config, name)) for config, name, _ in files]
    try:
        for config, name, rate in files:
            setattr(config, name, rate)
        yield
    finally:
        for config, name, rate in now:
            setattr(config, name, rate)


def _rates(holder: Any, words: tuple[str, ...]) -> list[tuple[Any, str]]:
    """A module or config and its attributes that hold a rate."""
    names = [name for name, value in vars(holder).items() if type(value) in (int, float)]
    return [
        (holder, name)
        for name in names
        if any(word in name for word in words) or (name == "p" and isinstance(holder, Dropout))
    ]
