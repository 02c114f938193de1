"""Every method has a page that names its options with their defaults and all that it logs, and shows its curves."""

import re

import pytest
import torch
import yaml
from benchmarks import method_curves
from omegaconf import OmegaConf
from PIL import Image

from alignlab.cli.composition.compose import ROOT, compose
from alignlab.errors import InputError
from alignlab.metrics import FAMILIES, METRICS, check_names
from alignlab.run_folder.metrics_file import read_metrics
from tests.methods.toy import METHODS as TOYS
from tests.methods.toy import class_of, fit, make_loader, make_method, rows_for

FOLDER = ROOT / "docs" / "methods"
METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))
FAMILY = ["preferences", "online"]
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
NOT_OPTIONS = {"defaults", "_target_", "_partial_"}


def flat(tree, path="method"):
    """Options of a config by their dotted path."""
    for key, value in tree.items():
        if key in NOT_OPTIONS:
            continue
        if isinstance(value, dict) and value:
            yield from flat(value, f"{path}.{key}")
        else:
            yield f"{path}.{key}", value


def own_options(method):
    return dict(flat(yaml.safe_load((ROOT / f"conf/method/{method}.yaml").read_text())))


def all_options(method):
    """Those of the composed method; a reward's own stand with the rewards."""
    plain = OmegaConf.to_container(compose([f"method={method}", "model=scratch"]).method)
    return {name: value for name, value in flat(plain) if not name.startswith("method.reward.")}


def named(option, text):
    """Whether a text names an option, in full or by its last word."""
    return re.search(rf"[`.]{option.rpartition('.')[2]}[`=:]", text) is not None


def with_family(method):
    """A page, and the pages of families that it links to."""
    text = PAGES[method]
    return text + "".join(PAGES[name] for name in FAMILY if f"]({name}.md" in text)


def cells(text, header):
    """First and second cells of the rows of all tables whose first row begins so."""
    tables = re.findall(rf"^\| {header} \|[^\n]*\n\|[-|]+\|\n((?:\|[^\n]*\n)+)", text, re.MULTILINE)
    return [tuple(line.strip("|").split(" | ")[:2]) for table in tables for line in table.splitlines()]


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_page_names_every_option(method):
    """Those of its own file; those that it shares may stand in the page of the family, if it links there."""
    assert [option for option in own_options(method) if not named(option, PAGES[method])] == []
    assert [option for option in all_options(method) if not named(option, with_family(method))] == []


@pytest.mark.parametrize("name", PAGES)
def test_options_in_tables_exist_and_have_these_defaults(name):
    methods = {"preferences": ["dpo", "kto"], "online": ["grpo", "rloo", "ppo"]}.get(name, [name])
    table = cells(PAGES[name], "option")
    found = [(option, value.strip()) for names, value in table for option in re.findall(r"`(method\.[\w.]+)`", names)]
    assert found or name == "pretrain"
    for method in methods:
        options = all_options(method)
        wrong = [pair for pair in found if pair[0] not in options or yaml.safe_load(pair[1]) != options[pair[0]]]
        assert wrong == [], method


@pytest.mark.parametrize("file", sorted((ROOT / "conf/method/loss").glob("*.yaml")), ids=lambda path: path.stem)
def test_what_a_loss_takes_is_named_beside_it(file):
    """In a page that also names the loss."""
    pages = [text for text in PAGES.values() if f"`{file.stem}`" in text]
    keys = [key for key, _ in flat(yaml.safe_load(file.read_text()), "")]
    assert pages and any(all(named(key, text) for key in keys) for text in pages)


# --- metrics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_page_names_every_metric(method):
    """All that four steps of each small variant of the method log, but what a run makes up itself."""
    target = yaml.safe_load((ROOT / f"conf/method/{method}.yaml").read_text())["_target_"]
    logged = set()
    for toy in TOYS:
        if class_of(toy).__name__ == target.rpartition(".")[2]:
            torch.manual_seed(0)
            _, steps = fit(make_method(toy, lr=1e-3, clip=1.0), make_loader(rows_for(toy), 4))
            logged |= {name for step in steps for name in step if not name.startswith("progress/")}
    made_up = {name for name in logged if name.startswith(tuple(FAMILIES)) and name not in METRICS}
    assert {"train/loss", "train/grad_norm_clipped"} < logged
    assert sorted(name for name in logged - made_up if f"`{name}`" not in PAGES[method]) == []


@pytest.mark.parametrize("name", PAGES)
def test_metrics_in_tables_are_known(name):
    table = cells(PAGES[name], "name")
    check_names(metric for names, _ in table for metric in re.findall(r"`([\w/]+)`", names))
    assert table or name == "preferences"


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_page_shows_its_curves(method):
    assert f"](pictures/{method}.png)" in PAGES[method].partition("\n## What the curves look like\n")[2]
    with Image.open(FOLDER / "pictures" / f"{method}.png") as image:
        assert 900 <= image.width <= 1200


def test_every_method_has_panels_of_known_metrics():
    assert sorted(method_curves.PANELS) == METHODS
    for panels in method_curves.PANELS.values():
        assert 4 <= len(panels) <= 6
        check_names(name for panel in panels for name in panel)


@pytest.fixture
def make_run(tmp_path):
    """A finished run's folder: 40 steps, a validation before them and every 20."""

    def make(name, method="dpo", **columns):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(f"method: {{_target_: alignlab.methods.{method}.X}}\n")
        names = ["progress/step", "val/loss", *columns]
        lines = [[0, 0.7, *("" for _ in columns)]]
        lines += [[step, 0.6 if step % 20 == 0 else "", *(f(step) for f in columns.values())] for step in range(1, 41)]
        (folder / "metrics.csv").write_text("\n".join(",".join(map(str, line)) for line in [names, *lines]) + "\n")
        return folder

    return make


def test_runs_of_a_method_share_a_picture(make_run, tmp_path):
    metrics = {"train/loss": lambda step: 1 / step, "rewards/margins": lambda step: step}
    runs = [make_run("a", **metrics), make_run("b", **metrics), make_run("c", method="grpo", **{"reward/mean": float})]
    written = method_curves.main([*map(str, runs), "--into", str(tmp_path / "pictures")])
    assert [file.name for file in written] == ["dpo.png", "grpo.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in written)


def test_a_picture_shows_what_was_logged_from_step_0_on(make_run):
    """Two runs: of the loss a raw and a smoothed curve each, of the validation one with three points each."""
    runs = [read_metrics(make_run(name, **{"train/loss": lambda step: 1 / step}) / "metrics.csv") for name in "ab"]
    (axes,) = method_curves.figure(method_curves.PANELS["dpo"], runs).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train/loss", "val/loss"]
    assert [len(line.get_xdata()) for line in axes.get_lines()] == [40, 40, 40, 40, 3, 3]
    assert list(axes.get_lines()[-1].get_ydata()) == [0.7, 0.6, 0.6]


def test_what_cannot_be_drawn_is_refused(make_run, tmp_path):
    with pytest.raises(InputError, match=r"holds no config\.yaml"):
        method_curves.method_of(tmp_path)
    with pytest.raises(InputError, match="nothing is said of method=mine"):
        method_curves.method_of(make_run("mine", method="mine"))
    with pytest.raises(InputError, match="have logged nothing"):
        method_curves.figure(method_curves.PANELS["kto"], [[{"progress/step": 1.0}]])
