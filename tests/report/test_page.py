"""The report as a page in a browser, as text and on the command line."""

import json
import re
import shutil
import subprocess

import pytest

from tests.commands import alignlab
from tests.report.runs import write_job, write_run

SAMPLE = {"step": 1, "prompt": "2 + 3 = </script><b>?", "completion": "5", "reward": 1.0, "tokens": 2, "finished": True}


@pytest.fixture
def runs(tmp_path):
    """Runs of two methods with two seeds, one of them failed, with completions, and a refused job."""
    for method in ("dpo", "simpo"):
        for seed in (1, 2):
            status = "failed" if (method, seed) == ("simpo", 2) else "done"
            run = write_run(tmp_path / "runs" / f"{method}{seed}", method=method, seed=seed, status=status)
            (run / "samples.jsonl").write_text(json.dumps(SAMPLE | {"completion": f"{method} {seed}"}) + "\n{")
    write_job(tmp_path / "runs", 4, "seed=-1")
    return tmp_path / "runs"


def in_browser(page):
    """The page after its scripts have run in headless Chromium, and what they wrote to the console."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    done = subprocess.run([chromium, *flags, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "GL" not in line]
    return done.stdout, console


def test_the_page_opens_in_a_browser_without_an_error(runs, tmp_path):
    assert alignlab("report", runs, f"to={tmp_path / 'out'}") == 0
    dom, console = in_browser(tmp_path / "out" / "report.html")
    assert not console
    table = dom[dom.index('id="runs"') : dom.index('id="unfinished"')]
    assert re.findall(r'class="status (\w+)"', table) == ["done", "done", "done", "failed", "refused"]
    assert "ValueError: no luck" in dom and "3 of 5 runs done" in dom
    assert dom.count('class="main-svg"') >= 2 and "parcoords" in dom
    shown = dom[dom.index('id="shown"') :]
    assert all(f"<pre>{method} {seed}</pre>" in shown for method in ("dpo", "simpo") for seed in (1, 2))
    assert "<pre>2 + 3 = &lt;/script&gt;&lt;b&gt;?</pre>" in shown


def test_the_page_loads_nothing(runs, tmp_path):
    alignlab("report", runs, f"to={tmp_path / 'out'}")
    html = (tmp_path / "out" / "report.html").read_text()
    head = html[: html.index("<script>")]
    assert not re.findall(r'(?:src|href)="(?!data:)', head)


def test_the_text_has_the_tables_and_its_pictures(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert alignlab("report", runs, f"to={tmp_path / 'out'}") == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| dpo1 | done | dpo | 0.1 | 1 | 0.5 | 0.7 | 2 | 1.5 |" in text
    pictures = re.findall(r"!\[.*\]\((.*)\)", text)
    assert pictures and all((tmp_path / "out" / name).stat().st_size > 5000 for name in pictures)
    said = capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]
    assert "final val/loss" in said and "method=simpo" in said and "report.html" in said


def test_an_earlier_report_is_replaced_and_nothing_else(runs, tmp_path, capsys):
    out = tmp_path / "out"
    for _ in range(2):
        assert alignlab("report", runs, f"to={out}") == 0
    (mine := tmp_path / "mine").mkdir()
    (mine / "notes.txt").write_text("keep")
    assert alignlab("report", runs, f"to={mine}") == 2
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]
    (out / "mine.png").write_text("keep")
    assert alignlab("report", runs, f"to={out}") == 2
    assert (out / "mine.png").read_text() == "keep"
    said = capsys.readouterr().err
    assert "earlier report: notes.txt" in said and "earlier report: mine.png" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gone"], "there is no such folder"),
        ([], "from: it has no default and was not given. Type a run after the verb"),
        (["runs", "metrics=val/loss"], "metric"),
        (["runs", "metric=val/los"], "val/loss"),
    ],
)
def test_faults_are_refused(runs, monkeypatch, capsys, words, said):
    monkeypatch.chdir(runs.parent)
    assert alignlab("report", *words) == 2
    assert said in capsys.readouterr().err


def test_paths_with_signs_of_the_shell(runs, tmp_path):
    odd = tmp_path / "it's [a] {b}, $c"
    shutil.copytree(runs, odd)
    assert alignlab("report", odd, f"to={tmp_path / 'out'}") == 0
