"""Show the rows as the model sees them, with their masks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from alignlab.cli.composition.command import command
from alignlab.config import schema
from alignlab.config.schema.root import PREVIEW


def main(words: Sequence[str]) -> int:
    """Tokenise the data as for training and print the rows; ``preview.html=FILE`` also writes a page.

    Args:
        words: Command line after the verb.

    Returns:
        Exit code.
    """
    return command("preview", words, check, show, PREVIEW)


def check(cfg: DictConfig) -> dict[str, Any]:
    """Check the config against the schema and for settings that cannot be combined; return it resolved."""
    from alignlab.cli.composition.hidden import hide_config
    from alignlab.config import compat

    hide_config(cfg)
    config = schema.check(cfg, PREVIEW)
    compat.check(config)
    return config


def show(config: dict[str, Any]) -> Any:
    """Print the first rows, and write the page if requested."""
    from alignlab.assemble import open_model_and_data
    from alignlab.data.preview import preview_html, preview_terminal, write_page
    from alignlab.run_folder import console

    console.set_up(config["debug"])
    config = config | {"data": config["data"] | {"streaming": False}}  # lengths and counts need all rows
    _, data = open_model_and_data(config)
    indices = range(min(config["preview"]["num_rows"], len(data.train)))
    console.show(preview_terminal(data.train, data.tokenizer, indices, data.unread_columns))
    if (file := config["preview"]["html"]) is not None:
        page = preview_html(data.train, data.tokenizer, indices, title="alignlab preview")
        write_page(Path(file), page)
        print(f"page: {file}")
