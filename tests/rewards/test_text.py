"""Every reward by hand."""

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from alignlab.errors import InputError
from alignlab.rewards.exact_answer import ExactAnswer
from alignlab.rewards.external import HTTPReward, PythonReward
from alignlab.rewards.math_equal import MathEqual
from alignlab.rewards.text import IntegerAnswer, Length, OverLength, Pattern, Repetition
from alignlab.rewards.xml_format import XMLFormat, XMLTags

STRICT = "<reasoning>\nso\n</reasoning>\n<answer>\n42\n</answer>\n"
SOFT = "<reasoning>so</reasoning> <answer>42</answer>"


@pytest.mark.parametrize(
    ("completion", "answer", "right"),
    [
        ("<answer>42</answer>", "42", 1.0),
        ("so 42", "work\n#### 42", 1.0),
        ("#### 1,234", "1234", 1.0),
        ("<answer>$1234.00</answer>", "1,234", 1.0),
        ("<answer>-3</answer>", "3", 0.0),
        ("The answer is 41.", "42", 0.0),
        ("<answer>42.</answer>", "42", 1.0),
    ],
)
def test_exact_answer(completion, answer, right):
    assert ExactAnswer(column="answer")([completion], [[]], answer=[answer]) == [right]


@pytest.mark.parametrize(("form", "expected"), [("strict", [1.0, 0.0, 0.0]), ("soft", [1.0, 1.0, 0.0])])
def test_xml_format(form, expected):
    assert XMLFormat(form=form)([STRICT, SOFT, "42"], [[]] * 3) == expected


@pytest.mark.parametrize(
    ("completion", "credit"),
    [
        (STRICT, 0.5),
        (SOFT, 0.5),
        (SOFT + "!!!!", 0.5 - 0.004),
        ("<answer>4</answer>", 0.25),
        (SOFT + SOFT, 0.0),
        ("", 0.0),
    ],
)
def test_xml_tags(completion, credit):
    assert XMLTags()([completion], [[]]) == pytest.approx([credit])


@pytest.mark.parametrize(("answer", "found"), [("42", 1.0), ("-3", 1.0), ("4.2", 0.0), ("four", 0.0), ("", 0.0)])
def test_integer_answer(answer, found):
    assert IntegerAnswer()([f"<answer>{answer}</answer>"], [[]]) == [found]


def test_pattern():
    assert Pattern(pattern=r"\d+.end", whole=False)(["12\nend of it", "end"], [[], []]) == [1.0, 0.0]
    assert Pattern(pattern=r"\d+", whole=True)(["12", "12 "], [[], []]) == [1.0, 0.0]
    with pytest.raises(InputError, match="regular expression"):
        Pattern(pattern="(", whole=False)


def test_length():
    assert Length(max_tokens=10)(["", ""], [[], []], num_tokens=[5, 10]) == [-0.5, -1.0]


def test_over_length_falls_over_the_last_tokens():
    reward = OverLength(max_tokens=100, soft_tokens=20)
    assert reward([""] * 4, [[]] * 4, num_tokens=[80, 90, 100, 120]) == [0.0, -0.5, -1.0, -1.0]


@pytest.mark.parametrize(("text", "cost"), [("a b c", 0.0), ("a b a b a b", -0.6), ("a", 0.0), ("", 0.0)])
def test_repetition(text, cost):
    """Two-grams of "a b a b a b": ab ba ab ba ab, 2 of 5 different."""
    assert Repetition(ngram_size=2)([text], [[]]) == pytest.approx([cost])


def test_math_equal():
    completions = ["<answer>1/2</answer>", "<answer>0.5</answer>", "<answer>0.6</answer>", "so it is $\\frac{1}{2}$"]
    assert MathEqual(column="answer")(completions, [[]] * 4, answer=["0.5"] * 4) == [1.0, 1.0, 0.0, 1.0]


def test_a_python_function_gets_what_it_names(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def named(completions, answer):\n    return [float(a) for a in answer]\n"
        "async def waiting(completions, **columns):\n    return [len(columns)] * len(completions)\n"
    )
    columns = {"answer": ["1", "2"], "level": [1, 1]}
    assert PythonReward(path=f"{file}:named")(["", ""], [[], []], **columns) == [1.0, 2.0]
    assert PythonReward(path=f"{file}:waiting")(["", ""], [[], []], **columns) == [3, 3]


def test_a_python_function_for_messages_is_found_by_its_first_call(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def of_messages(completions, **columns):\n    return [len(c[0]['content']) for c in completions]\n"
        "def of_anything(completions, **columns):\n    return [len(c) for c in completions]\n"
        "calls = []\n"
        "def fails_once(completions, **columns):\n    calls.append(1)\n"
        "    if len(calls) == 1:\n        raise OSError('no answer')\n    return [len(c) for c in completions]\n"
    )
    messages = PythonReward(path=f"{file}:of_messages")
    assert messages(["ab", "c"], [[], []]) == [2, 1] and messages.style == "messages"
    assert PythonReward(path=f"{file}:of_anything")(["ab", "c"], [[], []]) == [2, 1]
    assert PythonReward(path=f"{file}:of_anything", style="messages")(["ab", "c"], [[], []]) == [1, 1]
    server = PythonReward(path=f"{file}:fails_once")
    with pytest.raises(OSError, match="no answer"):
        server(["ab"], [[]])
    assert server(["ab"], [[]]) == [2] and server.style == "text"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("", "no such callable: AttributeError"),
        ("mine = 3", "mine is a int, which cannot be called"),
        ("1 / 0", "no such callable: ZeroDivisionError"),
        ("def mine(:", "no such callable: SyntaxError"),
        ("import no_such_module", "no such callable: ModuleNotFoundError"),
    ],
)
def test_a_python_function_that_is_none_is_refused(tmp_path, source, why):
    file = tmp_path / "mine.py"
    file.write_text(source)
    with pytest.raises(InputError, match=why):
        PythonReward(path=f"{file}:mine").prepare()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("nonsense", "begins with http"),
        ("localhost:8000/score", "begins with http"),
        ("file:///etc/passwd", "begins with http"),
        ("http://", "names no host"),
        ("http://:80/", "names no host"),
        ("http://host:port/", "not an address"),
        ("http://[::1/", "not an address"),
        ("http://a b/", "no blanks"),
        ("", "begins with http"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused(url, why):
    with pytest.raises(InputError, match=why):
        HTTPReward(url=url, timeout_seconds=1)


class Babbling(io.BytesIO):
    """An answer that never ends."""

    def read1(self, size):
        return b" " * size


@pytest.mark.parametrize(("seconds", "fault"), [(60, "longer than"), (-1, "not complete in time")])
def test_an_answer_without_an_end_is_left(monkeypatch, seconds, fault):
    monkeypatch.setattr("urllib.request.urlopen", lambda request, timeout: Babbling())
    with pytest.raises((ValueError, TimeoutError), match=fault):
        HTTPReward(url="http://host/", timeout_seconds=seconds)(["a"], [[]])


@pytest.mark.parametrize("reward", [ExactAnswer(column="answer"), MathEqual(column="answer")])
def test_a_row_without_a_right_answer_is_none_of_its_business(reward):
    assert reward(["None", "1"], [[], []], answer=[None, "1"]) == [None, 1.0]
    with pytest.raises(KeyError, match="no row has a column 'answer'; there are level"):
        reward(["1"], [[]], level=[1])


def test_more_words_to_an_n_gram_than_there_are():
    assert Repetition(ngram_size=10**9)(["a a a"], [[]]) == [0.0]


def test_http():
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps({"rewards": [len(text) + given["bonus"][0] for text in given["completions"]]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            """Stay silent."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        reward = HTTPReward(url=f"http://127.0.0.1:{server.server_port}", timeout_seconds=5)
        assert reward(["a", "bb"], [[], []], bonus=[10, 10]) == [11, 12]
        server.shutdown()
