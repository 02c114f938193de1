"""Write a trained model for other tools, merged."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from alignlab.cli.composition.command import command
from alignlab.cli.composition.paths import model_from_words, path_as_key
from alignlab.config.schema import check_keys
from alignlab.config.schema.root import EXPORT


def main(words: Sequence[str]) -> int:
    """Write a model, compare it with the trained one, and perhaps upload it.

    Args:
        words: Command line after the verb: a model, and ``key=value``.

    Returns:
        Exit code.
    """
    return command("export", path_as_key(words, "from"), partial(check_keys, sections=EXPORT), write)


def write(config: dict[str, Any]) -> None:
    """Write the model, and print what was written."""
    from alignlab.errors import RunError
    from alignlab.models.export import ExportError
    from alignlab.models.publish import publish, push
    from alignlab.run_folder import console

    console.set_up(config["debug"])
    options = ("merge", "dtype", "max_shard_size", "max_logit_difference", "trust_remote_code")
    try:
        with model_from_words():
            done = publish(config["from"], Path(config["to"]), **{key: config[key] for key in options})
    except ExportError as error:
        instead = "Type another dtype, or a larger max_logit_difference if you accept it"
        raise RunError(f"exporting {config['from']}", str(error), instead) from error
    print(f"{done.folder}: {done.dtype}, {done.num_bytes / 2**20:,.1f} MiB", end="")
    print(f", logits within {done.max_logit_difference:.2g} of the trained model's")
    if config["push_to"] is not None:
        print(f"uploaded: {push(done.folder, config['push_to'])}")
