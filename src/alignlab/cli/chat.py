"""Talk to a trained model in the terminal."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from alignlab.cli.composition.command import command
from alignlab.cli.composition.paths import model_from_words, path_as_key
from alignlab.config.schema import check_keys
from alignlab.config.schema.root import CHAT


def main(words: Sequence[str]) -> int:
    """Open a model and answer what is typed.

    Args:
        words: Command line after the verb: a model, and ``key=value``.

    Returns:
        Exit code.
    """
    return command("chat", path_as_key(words, "from"), partial(check_keys, sections=CHAT), talk)


def talk(config: dict[str, Any]) -> None:
    """Open the model and talk."""
    import sys

    import torch

    from alignlab.chat.speaker import Speaker, SpeakerSettings
    from alignlab.chat.terminal import HELP, talk, typed_lines
    from alignlab.models.opened import open_trained
    from alignlab.run_folder import console

    console.set_up(config["debug"])
    if config["seed"] is not None:
        torch.manual_seed(config["seed"])
    opening = {key: config[key] for key in ("dtype", "device", "trust_remote_code")}
    with model_from_words():
        model, tokenizer = open_trained(config["from"], **opening)
    template = {"chat_template": config["chat_template"], "variables": config["chat_template_kwargs"]}
    speaker = Speaker(model=model, tokenizer=tokenizer, **template)
    settings = SpeakerSettings(**config["sampling"])
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print(HELP)
    talk(speaker, settings, config["system"], typed_lines("> " if is_terminal else ""))
