"""The documentation as a site: it builds without a warning, loads nothing from elsewhere, and lists what code has."""

import html
import os
import re
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from alignlab.cli.composition.compose import ROOT, compose
from alignlab.config.schema.other_tools import OTHER_TOOLS
from alignlab.metrics import FAMILIES, METRICS

NOT_LISTED = re.compile(r"_partial_$|callbacks\.held_out_samples\.sampler\.")
"""How an object is made, which is nothing to type; and the keys of ``rollout=hf``, which are listed there."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site. A warning fails it: a broken link, or a page that is not in the navigation."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def codes(page):
    """What stands as code in a page."""
    return {html.unescape(one) for one in re.findall(r"<code>([^<]*)</code>", page.read_text(encoding="utf-8"))}


def test_pages_load_nothing_from_elsewhere(site):
    loads = r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//[^\s\">]+"
    pages = {page.name: re.findall(loads, page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}
    assert len(pages) > 30
    assert {name: found for name, found in pages.items() if found} == {}


def test_formulas_are_written_without_tex(site):
    pages = [page.read_text(encoding="utf-8") for page in (site / "methods").glob("*.html")]
    formulas = re.findall(r"<math.*?</math>", "".join(pages), re.DOTALL)
    assert len(formulas) > 100
    assert [formula for formula in formulas if "\\" in formula] == []
    assert not re.search(r'class="arithmatex"|\$\$', "".join(pages))


def test_bars_in_the_code_of_a_table_have_no_backslash(site):
    assert "<|im_start|>role … <|im_end|>" in codes(site / "own_data.html")


def test_papers_are_linked_but_not_in_code(site):
    linked = '<a href="https://arxiv.org/abs/{0}">arXiv {0}</a>'
    pages = {name: (site / name).read_text(encoding="utf-8") for name in ("methods/sft.html", "adding_a_method.html")}
    assert linked.format("2508.05629") in pages["methods/sft.html"]
    assert linked.format("2304.06767") in pages["adding_a_method.html"]
    assert not re.search(r"<pre(?:(?!</pre>).)*arxiv\.org", pages["adding_a_method.html"], re.DOTALL)


@pytest.mark.parametrize("words", ["method=dpo peft=qlora strategy=deepspeed_z3", "method=ppo rollout=vllm data=hub"])
def test_every_key_of_a_run_is_listed(site, words):
    config = OmegaConf.to_container(compose(words.split()), resolve=False)
    listed = codes(site / "keys.html")
    assert [key for key in flat(config) if key not in listed and not NOT_LISTED.search(key)] == []


def flat(tree, path=""):
    """Keys of the values of a config."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def test_every_metric_and_every_option_of_other_tools_is_listed(site):
    assert {*METRICS, *(f"{prefix}…" for prefix in FAMILIES)} <= codes(site / "metrics.html")
    assert {*OTHER_TOOLS, *OTHER_TOOLS.values()} <= codes(site / "coming_from.html")


def test_every_paper_that_is_named_has_its_row():
    number = r"(?<![\d.])\d{4}\.\d{5}(?!\d)"
    folders = ((ROOT / "src", "*.py"), (ROOT / "conf", "*.yaml"), (ROOT / "docs", "*.md"))
    files = [file for folder, kind in folders for file in folder.rglob(kind) if file.name != "papers.md"]
    named = {one for file in files for one in re.findall(f"arXiv[: ]+({number})", file.read_text(encoding="utf-8"))}
    rows = set(re.findall(rf"^\| .*?arxiv\.org/abs/({number})", (ROOT / "docs/papers.md").read_text(), re.MULTILINE))
    assert len(named) > 70
    assert sorted(named - rows) == []
