"""Completion of the command line in bash: a script with the verbs, groups, options and keys of ``conf/``."""

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

SCRIPT = """\
# Completion of alignlab in bash. Load it with: source <(alignlab --completion)
_alignlab() {{
    local line="${{COMP_LINE:0:COMP_POINT}}" word verbs={verbs} words={words}
    word="${{line##*[[:space:]]}}"
    if [[ $COMP_CWORD -le 1 && $word != *=* ]]; then
        COMPREPLY=($(compgen -W "$verbs" -- "$word"))
        return
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    if [[ $word != *=* ]]; then
        COMPREPLY=($(printf '%s\\n' "${{COMPREPLY[@]%%=*}}" | sort -u | sed '/^[^-]/s/$/=/'))
        compopt -o nospace 2>/dev/null
    elif [[ $COMP_WORDBREAKS == *=* ]]; then
        COMPREPLY=("${{COMPREPLY[@]#"${{word%%=*}}="}}")  # bash completes what is behind the =
    fi
}}
complete -F _alignlab alignlab
"""

FLAGS = ("--help", "--multirun", "--cfg=job", "--from")
NOT_TYPED = ("part", "pair", "hydra")
"""Folders of ``conf/`` that hold parts of options, and settings that options choose."""


def script(conf: Path, verbs: Iterable[str]) -> str:
    """The script to load into bash.

    Args:
        conf: The folder of the options.
        verbs: Verbs of ``alignlab``.
    """
    words = sorted({*FLAGS, *_options(conf), *_keys(conf)})
    return SCRIPT.format(
        verbs=shlex.quote(" ".join([*verbs, "--help", "--version"])), words=shlex.quote(" ".join(words))
    )


def _files(conf: Path) -> Iterator[tuple[str, Path]]:
    """Group and file of every option that a user may type."""
    for file in sorted(conf.rglob("*.yaml")):
        folders = file.relative_to(conf).parts[:-1]
        if folders and not set(folders) & set(NOT_TYPED):
            yield "/".join(folders), file


def _options(conf: Path) -> Iterator[str]:
    yield from (f"{group}={file.stem}" for group, file in _files(conf))


def _keys(conf: Path) -> Iterator[str]:
    """``key=`` of the root, and of every option in the section that it fills."""
    root = conf / "train.yaml"
    yield from (f"{key}=" for key, value in _content(root).items() if not isinstance(value, dict))
    for group, file in _files(conf):
        text = file.read_text(encoding="utf-8")
        section = "" if "@package _global_" in text else f"{group.split('/')[0]}."
        if "/" not in group:
            yield from (f"{section}{key}=" for key, value in _content(file).items() if not isinstance(value, dict))


def _content(file: Path) -> dict[str, object]:
    content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    return {key: value for key, value in content.items() if key != "defaults" and not key.startswith("_")}
