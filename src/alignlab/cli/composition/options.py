"""Names the losses that fit a method, for the refusal of one that does not."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignlab.cli.composition.compose import ROOT
from alignlab.config.kinds import expected_kinds
from alignlab.config.target import locate
from alignlab.errors import InputError, InputErrors

LOSS = re.compile(r"method\.loss(=|(\.\w+)?\._target_=)")
"""Matches the beginning of the refusal of a loss."""

CONF = ROOT / "conf"


def with_losses(error: InputError, method: Any) -> InputError:
    """Add the losses that the method accepts to the refusal of another loss.

    Args:
        error: Error of a check of the config.
        method: ``_target_`` of the method.
    """
    errors = error.errors if isinstance(error, InputErrors) else (error,)
    if not any(LOSS.match(one.asked) for one in errors):
        return error
    instead = f"Type method/loss= with one of: {', '.join(losses_of(locate(method)))}; or name a function of your own"
    told = [InputError(one.asked, one.why, instead) if LOSS.match(one.asked) else one for one in errors]
    return InputErrors(told) if isinstance(error, InputErrors) else told[0]


def losses_of(method: type) -> Iterator[str]:
    """Yield the options of ``method/loss`` that a method accepts."""
    kinds = expected_kinds("method.loss", method, "loss")
    for file in sorted((CONF / "method" / "loss").glob("*.yaml")):
        target = locate(_target(file))
        if any(kind.fits(target) for kind in kinds):
            yield file.stem


def _target(file: Path) -> str:
    """``_target_`` of an option, or of the first file of its defaults list."""
    text = file.read_text(encoding="utf-8")
    found = re.search(r"_target_: (\S+)", text)
    if found:
        return found[1]
    base = re.search(r"defaults: \[([\w/]+)@", text)[1]
    return _target(CONF / f"{base[1:]}.yaml" if base.startswith("/") else file.with_name(f"{base}.yaml"))
