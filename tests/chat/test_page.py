"""The page in a real browser: typing, streaming, voting, and the verb that serves it."""

import json
import multiprocessing
import os
import socket
import sys
import time
import warnings

import pytest

from alignlab.cli import chat
from tests.browser import SECONDS, browser
from tests.chat.toy import SAMPLING, Reciter
from tests.commands import alignlab

pytest.importorskip("gradio")

LOCAL = "127.0.0.1"
QUESTION = "#question textarea"


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def serving(tab, free_port):
    """Starts a function that serves a page at the free port, in a process of its own, and opens the page in the tab."""
    processes = []

    def start(serve, *arguments):
        processes.append(multiprocessing.Process(target=serve, args=arguments))
        processes[-1].start()
        until = time.monotonic() + SECONDS
        while not is_served(free_port):
            assert processes[-1].is_alive() and time.monotonic() < until
            time.sleep(0.05)
        go_to(tab, free_port)
        return processes[-1]

    yield start
    tab.call("Page.navigate", url="about:blank")
    for process in processes:
        process.kill()
        process.join()


@pytest.fixture
def open_page(serving, tmp_path, free_port):
    """Opens a page with these speakers."""

    def open_one(num_answers=1, system=None, **speakers):
        serving(_serve, speakers, num_answers, system, tmp_path, free_port)

    return open_one


def _serve(speakers, num_answers, system, folder, port):
    warnings.simplefilter("ignore")
    from alignlab.chat.page import Page, PageSettings, serve

    settings = {"sampling": SAMPLING, "system": system, "num_answers": num_answers, "votes": folder / "votes.jsonl"}
    serve(Page(speakers, PageSettings(**settings)), LOCAL, port)


def is_served(port):
    with socket.socket() as probe:
        return probe.connect_ex((LOCAL, port)) == 0


def go_to(tab, port):
    tab.errors.clear(), tab.requests.clear()
    tab.call("Page.navigate", url=f"http://127.0.0.1:{port}")
    tab.wait(f"document.querySelector('{QUESTION}')?.matches(':enabled')")


def check_quiet(tab, port):
    """No errors, and nothing was asked of another machine."""
    assert tab.errors == []
    assert tab.requests and all(url.startswith((f"http://127.0.0.1:{port}/", "data:")) for url in tab.requests)


def ask(tab, question):
    tab.type(QUESTION, question)
    tab.press_enter()


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def said(text):
    return {"role": "assistant", "content": text}


def test_two_models_answer_piece_by_piece_and_a_vote_lands_in_the_file(tab, open_page, tmp_path, free_port):
    texts = "{} <b>says</b> one two three", "{} more"
    gate = tmp_path / "gate"
    a, b = (Reciter(*(t.format(x) for t in texts), gate=gate, notes=tmp_path / x) for x in "AB")
    open_page(system="Be brief.", A=a, B=b)
    ask(tab, "What?")
    tab.wait("document.querySelector('#answer-0 textarea').value === 'A <b>says</b> one two'")
    assert tab.evaluate("document.querySelector('#choose-0').disabled")
    gate.touch()
    tab.click("#choose-1")
    tab.wait("document.querySelector('#tally').innerText.includes('1 for B')")
    (row,) = rows(tmp_path / "votes.jsonl")
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}]
    assert (row["prompt"], row["chosen"]) == (asked, [said("B <b>says</b> one two three")])
    assert row["rejected"] == [said("A <b>says</b> one two three")]
    ask(tab, "And?")  # the dialogue goes on with the winner
    tab.wait("!document.querySelector('#tie').disabled")
    assert rows(tmp_path / "A")[1] == [*asked, *row["chosen"], {"role": "user", "content": "And?"}]
    assert "B <b>says</b> one two three" in tab.evaluate("document.querySelector('#history').innerText")
    tab.click("#none")
    tab.wait(f"document.querySelector('{QUESTION}').value === 'And?'")
    assert len(rows(tmp_path / "votes.jsonl")) == 1
    check_quiet(tab, free_port)


def test_the_best_of_four_makes_a_group(tab, open_page, tmp_path, free_port):
    open_page(num_answers=2, A=Reciter("a", "b"), B=Reciter("c", "d"))
    ask(tab, "Which?")
    tab.click("#choose-2")
    tab.wait("document.querySelector('#tally').innerText.includes('1 for B')")
    (row,) = rows(tmp_path / "votes.jsonl")
    assert (row["chosen"], row["rejected"]) == ([said("c")], [[said("a")], [said("b")], [said("d")]])
    check_quiet(tab, free_port)


def test_stop_new_settings_and_errors(tab, open_page, tmp_path, free_port):
    texts, gate = ("1 2 3", RuntimeError("no memory"), "Yes."), tmp_path / "gate"
    open_page(A=Reciter(*texts, gate=gate, notes=tmp_path / "A"))
    ask(tab, "Count.")
    tab.wait("document.querySelector('#history').innerText.includes('1 2')")
    tab.click("#stop")
    tab.wait("document.querySelector('#stop').disabled && !document.querySelector('#send').disabled")
    assert "3" not in tab.evaluate("document.querySelector('#history').innerText")
    gate.touch()
    ask(tab, "Again?")
    tab.wait("document.body.innerText.includes('no memory')")
    tab.wait(f"document.querySelector('{QUESTION}').value === 'Again?'")
    tab.type("#temperature input", "-1")
    tab.click("#send")
    tab.wait("document.body.innerText.includes('temperature=-1')")
    tab.type("#temperature input", "0.5")
    tab.click("#new")
    tab.wait("!document.querySelector('#history').innerText.includes('Count.')")
    tab.type("#system textarea", "Be kind.")
    ask(tab, "Well?")
    tab.wait("document.querySelector('#history').innerText.includes('Yes.')")
    assert rows(tmp_path / "A")[-1] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Well?"}]
    assert not (tmp_path / "votes.jsonl").exists()
    check_quiet(tab, free_port)


def _run_verb(folder, words):
    warnings.simplefilter("ignore")
    os.chdir(folder)
    sys.exit(alignlab(*words))


def test_the_verb_serves_models_and_ends_with_the_exit_code_of_its_signal(tab, serving, tmp_path, free_port):
    words = ["chat", "pocket", "ui=web", f"port={free_port}", "num_answers=2", "sampling.temperature=1.5", "seed=1"]
    server = serving(_run_verb, tmp_path, words)
    ask(tab, "Calculate 20 + 5.")
    tab.click("#choose-0")
    tab.wait("document.querySelector('#tally').innerText.includes('1 for pocket')")
    check_quiet(tab, free_port)
    server.terminate()
    server.join(SECONDS)
    assert server.exitcode == 143
    assert [path.name for path in tmp_path.iterdir()] == ["votes.jsonl"]
    assert rows(tmp_path / "votes.jsonl")[0]["prompt"] == [{"role": "user", "content": "Calculate 20 + 5."}]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["against=pocket"], "Type num_answers=2 to choose between its answers"),
        (["num_answers=2", "sampling.temperature=0"], "the same answer each time"),
        (["host=203.0.113.1"], "host=203.0.113.1 port=7860: Cannot assign requested address"),
        (["votes=notes.txt"], "Name another file, such as votes=notes_2.jsonl"),
        (["ui=terminal", "against=other"], "against=other: the terminal shows one answer at a time. Type ui=web"),
        (["against=gone/away/now"], "against=gone/away/now: no config.json"),
        (["ui=page"], "ui"),
        (["port=0"], "port"),
    ],
)
def test_what_cannot_be_served_is_refused(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert alignlab("chat", "pocket", "ui=web", *words) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["gradio", None])
def test_gradio_and_the_port_are_asked_for_before_the_models(missing, monkeypatch, capsys, free_port):
    monkeypatch.setattr(chat, "_open", lambda *_: pytest.fail("opened a model"))
    monkeypatch.setitem(sys.modules, "gradio", None) if missing else None
    with socket.create_server((LOCAL, free_port)):
        assert alignlab("chat", "pocket", "ui=web", f"port={free_port}") == 2
    err = capsys.readouterr().err
    assert ('Type pip install "alignlab[web]"' in err) == bool(missing) and "Address already in use" in err
