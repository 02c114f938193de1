"""What the site has beside the pages of this folder: pages from elsewhere, tables made from the code, and formulas.

MkDocs calls the functions ``on_…`` (``hooks`` in mkdocs.yml).
"""

import html
import os
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
ELSEWHERE = {
    "README.md": "index.md",
    **{name: name for name in ("AGENTS.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE")},
    **{name: name for name in ("experiments/README.md", "benchmarks/GPU.md", "benchmarks/RESULTS.md")},
}
"""Files outside this folder, and their place in the site."""

ORDER = ["method", "model", "data", "peft", "strategy", "optimizer", "scheduler", "rollout", "trainer"]
PLACES = {
    "method/part/clipped": "method.loss",
    "method/part/ratio": "method.loss",
    "method/part/limits": "method.reward_limits",
    "data/part/arithmetic": "data.source",
    "data/part/file": "data.source.sources.NAME",
    "data/part/hub": "data.source.sources.NAME",
}
"""Where the keys of a shared part stand, if not in its group."""


# --- pages from elsewhere ---------------------------------------------------------------------------------------------


def on_files(files: Any, config: Any) -> None:
    """Add the pages that are not in this folder."""
    for source, place in ELSEWHERE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))


def in_site(link: str, page: str) -> str:
    """A link of a file of the repository, as it is from the file's place in the site.

    Args:
        link: Relative path, perhaps with an anchor.
        page: The file, from the top of the repository.
    """
    path, mark, anchor = link.partition("#")
    target = os.path.normpath(os.path.join(os.path.dirname(page), path))
    return os.path.relpath(place_of(target), os.path.dirname(place_of(page)) or ".") + mark + anchor


def place_of(path: str) -> str:
    """Place in the site of a file of the repository."""
    return ELSEWHERE.get(path, path.removeprefix("docs/"))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put links right, and tables in the place of their names."""
    source = os.path.relpath(page.file.abs_src_path, ROOT)
    linked = re.sub(r"(?<=\]\()(?!https?:|#)[^)\s]+", lambda link: in_site(link[0], source), markdown)
    return re.sub(r"<!-- table: (\w+) -->", lambda name: TABLES[name[1]](), linked)


# --- formulas and papers ----------------------------------------------------------------------------------------------


def on_page_content(content: str, **_: Any) -> str:
    """Write formulas in MathML, which browsers show without a script, and link papers.

    A bar in a cell's code has a backslash in the page, which GitHub takes away and Python-Markdown leaves.
    """
    content = re.sub(r"<td.*?</td>", lambda cell: cell[0].replace(r"\|", "|"), content, flags=re.DOTALL)
    shown = re.sub(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', mathml, content, flags=re.DOTALL)
    return re.sub(r"(<pre.*?</pre>|<a .*?</a>)|arXiv\s(\d{4}\.\d{5})", paper, shown, flags=re.DOTALL)


def mathml(formula: re.Match[str]) -> str:
    """One formula."""
    block = formula[1] == "div"
    written = convert(html.unescape(formula[2]), display="block" if block else "inline")
    return f'<div class="formula">{written}</div>' if block else written


def paper(found: re.Match[str]) -> str:
    """A paper's number with its link; code and links stay."""
    return found[0] if found[1] else f'<a href="https://arxiv.org/abs/{found[2]}">{found[0]}</a>'


# --- tables -----------------------------------------------------------------------------------------------------------


def table(head: list[str], rows: Iterator[tuple[str, ...]]) -> str:
    """Rows of cells in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def code(text: str) -> str:
    """A cell that is code; nothing for nothing."""
    return f"`{text}`" if text else ""


def prose(text: str) -> str:
    """A cell that is text, without a meaning in Markdown."""
    return re.sub(r"[|*_`\[]", lambda sign: f"&#{ord(sign[0])};", html.escape(text))


def names_of(module: str) -> dict[str, Any]:
    """Names of one file of the package, run alone: importing the package would load torch."""
    return runpy.run_path(str(ROOT / "src" / "alignlab" / module))


def metrics() -> str:
    """Every metric with its unit and meaning."""
    known = names_of("metrics.py")
    best = {"min": "the lowest", "max": "the highest", None: ""}
    named = known["METRICS"] | {f"{prefix}…": metric for prefix, metric in known["FAMILIES"].items()}
    rows = (
        (code(name), prose(metric.unit), prose(metric.meaning), best[metric.best]) for name, metric in named.items()
    )
    return table(["name", "unit", "meaning", "best"], rows)


def other_tools() -> str:
    """Every argument of another tool with what is typed here."""
    known = names_of("config/schema/other_tools.py")["OTHER_TOOLS"]
    words = dict.fromkeys(known.values())
    rows = ((", ".join(code(name) for name in known if known[name] == one), code(one)) for one in words)
    return table(["theirs", "here"], rows)


def keys() -> str:
    """Every key of every option, group by group."""
    folders = {path.parent.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")}
    first = [".", *(folder for name in ORDER for folder in sorted(folders) if f"{folder}/".startswith(f"{name}/"))]
    rest = sorted(folder for folder in folders - set(first) if not folder.startswith(("hydra", "pair")))
    return "\n\n".join(map(group, [*first, *rest, *sorted(name for name in folders if name.startswith("pair"))]))


def group(name: str) -> str:
    """The table of a folder of ``conf/``."""
    title = "## Commands" if name == "." else f"## `{name}`"
    rows = (row for file in sorted((CONF / name).glob("*.yaml")) for row in option(file))
    return f"{title}\n\n{table(['option', 'key', 'value', 'meaning'], rows)}"


def option(file: Path) -> Iterator[tuple[str, ...]]:
    """Rows of a file of ``conf/``: the option with what it is, then its keys."""
    text = file.read_text(encoding="utf-8")
    remarks = [line[2:] for line in text.splitlines() if line.startswith("# ") and not line.startswith("# @")]
    yield f"**{code(file.stem)}**", "", "", prose(" ".join(remarks))
    for key, value, remark in leaves(yaml.compose(text), package(file, text), text.splitlines()):
        yield "", code(key), code(value), prose(remark)


def package(file: Path, text: str) -> str:
    """Where the keys of a file stand in a config, with a dot at its end if that is not the top."""
    name = file.relative_to(CONF).with_suffix("").as_posix()
    header = re.search(r"# @package (\S+)", text)
    usual = name.rpartition("/")[0].removesuffix("/part").replace("/", ".")
    place = PLACES.get(name, header[1] if header else usual)
    return "" if place in ("", "_global_") else f"{place}."


def leaves(node: yaml.Node, path: str, lines: list[str]) -> Iterator[tuple[str, str, str]]:
    """Key, value and comment of each value below a node; of a mapping with a comment its key and comment too."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.value in ("defaults", "hydra", "_partial_"):
            continue
        nested = isinstance(value, yaml.MappingNode) and value.value
        end = key.end_mark if nested and not value.flow_style else value.end_mark
        remark = re.search(r"(?:^|\s)# ?(.*)", lines[end.line][end.column :] if end.line < len(lines) else "")
        if nested:
            if remark and not value.flow_style:
                yield f"{path}{key.value}", "", remark[1]
            yield from leaves(value, f"{path}{key.value}.", lines)
        else:
            shown = value.start_mark.buffer[value.start_mark.pointer : value.end_mark.pointer].rstrip("\0\n ")
            yield f"{path}{key.value}", " ".join(shown.split()), remark[1] if remark else ""


TABLES: dict[str, Callable[[], str]] = {"metrics": metrics, "other_tools": other_tools, "keys": keys}
"""Tables by the name that stands in a page: ``<!-- table: NAME -->``."""
