"""Talk to a trained model in the terminal or a browser; vote."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from alignlab.cli.composition.command import command
from alignlab.cli.composition.paths import model_from_words, path_as_key
from alignlab.config.schema import check_keys
from alignlab.config.schema.root import CHAT

if TYPE_CHECKING:
    from alignlab.chat.speaker import Speaker


def main(words: Sequence[str]) -> int:
    """Open one model or two, and answer what is typed.

    Args:
        words: Command line after the verb: a model, and ``key=value``.

    Returns:
        Exit code.
    """
    return command("chat", path_as_key(words, "from"), partial(check_keys, sections=CHAT), talk)


def talk(config: dict[str, Any]) -> None:
    """Open the models and talk."""
    import torch

    from alignlab.run_folder import console

    console.set_up(config["debug"])
    if config["seed"] is not None:
        torch.manual_seed(config["seed"])
    {"terminal": _in_terminal, "web": _in_browser}[config["ui"]](config)


def _in_terminal(config: dict[str, Any]) -> None:
    import sys

    from alignlab.chat.settings import SpeakerSettings
    from alignlab.chat.terminal import HELP, talk, typed_lines
    from alignlab.errors import InputError

    for key, usual in (("against", None), ("num_answers", 1)):
        if config[key] != usual:
            why = "the terminal shows one answer at a time"
            raise InputError(f"{key}={config[key]}", why, f"Type ui=web {key}={config[key]}")
    speaker = _open(config, "from")
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print(HELP)
    lines = typed_lines("> " if is_terminal else "")
    talk(speaker, SpeakerSettings(**config["sampling"]), config["system"], lines)


def _in_browser(config: dict[str, Any]) -> None:
    from alignlab.chat.settings import SpeakerSettings
    from alignlab.chat.votes import votes_file

    _refuse_before_loading(config)
    file = votes_file(config["votes"])
    from alignlab.chat.page import Page, PageSettings, serve

    speakers = {config[key]: _open(config, key) for key in ("from", "against") if config[key] is not None}
    settings = PageSettings(
        sampling=SpeakerSettings(**config["sampling"]),
        system=config["system"],
        num_answers=config["num_answers"],
        votes=file,
    )
    serve(Page(speakers, settings), config["host"], config["port"])


def _refuse_before_loading(config: dict[str, Any]) -> None:
    """Refuse what the page cannot do.

    Raises:
        InputError: For each of these reasons, all reported together.
    """
    from importlib.util import find_spec

    from alignlab.errors import InputError, raise_all
    from alignlab.system.listening import address_error

    errors = []
    if find_spec("gradio") is None:
        errors.append(InputError("ui=web", "Gradio is not installed", 'Type pip install "alignlab[web]"'))
    if config["against"] == config["from"]:
        why = "it is the same model"
        errors.append(
            InputError(f"against={config['against']}", why, "Type num_answers=2 to choose between its answers")
        )
    if config["num_answers"] > 1 and config["sampling"]["temperature"] == 0:
        asked = f"num_answers={config['num_answers']} with sampling.temperature=0"
        errors.append(
            InputError(asked, "a model would give the same answer each time", "Type sampling.temperature=0.7")
        )
    if error := address_error(config["host"], config["port"]):
        errors.append(error)
    raise_all(errors)


def _open(config: dict[str, Any], key: str) -> "Speaker":
    """Open the model that a key names."""
    from alignlab.chat.speaker import Speaker
    from alignlab.models.opened import open_trained

    opening = {name: config[name] for name in ("dtype", "device", "trust_remote_code")}
    with model_from_words(key):
        model, tokenizer = open_trained(config[key], **opening)
    template = {"chat_template": config["chat_template"], "variables": config["chat_template_kwargs"]}
    return Speaker(model=model, tokenizer=tokenizer, **template)
