"""The help of a verb: its page in ``conf/hydra/help``, with the groups of the search path."""

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from alignlab.cli.composition.compose import ConfigGroups

GROUPS = "$APP_CONFIG_GROUPS"
"""Where a page lists the groups."""

INNER = ("hydra", "pair", "part")
"""Groups that nobody types: files that other files are made of."""

ELSEWHERE = ("method/loss",)
"""Groups of which the page says more."""

WIDTH, INDENT = 78, 22


def help_page(text: str, groups: "ConfigGroups") -> str:
    """Complete a page.

    Args:
        text: The YAML file of the page, whose key ``template`` has its text.
        groups: Groups and their options.
    """
    template = yaml.safe_load(text)["template"].rstrip()
    lines = (_line(group, groups.options(group)) for group in sorted(_typed_groups(groups)))
    return template.replace(GROUPS, "\n".join(lines) + "\n")


def _typed_groups(groups: "ConfigGroups", parent: str = "") -> Iterator[str]:
    """Groups, and groups inside of groups, from which there is something to choose."""
    for name in groups.groups(parent):
        path = f"{parent}/{name}" if parent else name
        if name in INNER or path in ELSEWHERE:
            continue
        if len(groups.options(path)) > 1:
            yield path
        yield from _typed_groups(groups, path)


def _line(group: str, options: list[str]) -> str:
    head = f"  {group:<{INDENT - 3}} "
    return textwrap.fill(", ".join(options), WIDTH, initial_indent=head, subsequent_indent=" " * INDENT)
