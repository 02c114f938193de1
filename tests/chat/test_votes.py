"""Votes over answers to one dialogue: what is written, what is refused, and that methods train on it."""

import json
import multiprocessing

import pytest

from alignlab.chat.judged import Judged
from alignlab.chat.votes import Candidate, append_row, row_of_vote, votes_file
from alignlab.data.formats import to_row
from alignlab.data.sources.files.record import Record
from alignlab.errors import InputError
from tests.chat.toy import SAMPLING, Reciter
from tests.commands import QUIET, alignlab, metrics

SYSTEM = {"role": "system", "content": "Be brief."}


def ask(talk, question, *reciters, num_answers=1):
    speakers = dict(zip("AB", reciters, strict=False))
    for _ in talk.ask(question, speakers, SAMPLING, num_answers):
        pass


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def said(text):
    return {"role": "assistant", "content": text}


def test_a_dialogue_goes_on_with_the_winner_and_each_vote_has_all_of_it(tmp_path):
    talk, file = Judged(dialogue=[SYSTEM]), tmp_path / "votes.jsonl"
    a, b = (Reciter(f"{x} 1", f"{x} 2", notes=tmp_path / x) for x in "ab")
    ask(talk, "one?", a, b)
    talk.vote(1, file)
    ask(talk, "two?", a, b)
    assert rows(tmp_path / "a")[1] == rows(tmp_path / "b")[1] == talk.dialogue
    talk.vote(0, file)
    first, second = rows(file)
    begin = [SYSTEM, {"role": "user", "content": "one?"}]
    assert (first["prompt"], first["chosen"], first["rejected"]) == (begin, [said("b 1")], [said("a 1")])
    assert second["prompt"] == [*begin, said("b 1"), {"role": "user", "content": "two?"}]
    assert second["chat_vote"]["chosen"] == "A" and second["chat_vote"]["rejected"] == ["B"]
    assert second["chat_vote"]["sampling"]["temperature"] == 0.7
    assert talk.dialogue[-1] == said("a 2") and talk.wins == {"A": 1, "B": 1}


def test_the_best_of_several_makes_a_group_without_what_says_nothing(tmp_path):
    talk, file = Judged(), tmp_path / "votes.jsonl"
    ask(talk, "q?", Reciter("best", "best", " "), Reciter("b", "c", "d"), num_answers=3)
    talk.vote(0, file)
    (row,) = rows(file)
    assert row["rejected"] == [[said("b")], [said("c")], [said("d")]]
    read = to_row(Record("f:1", row), "auto", {})
    assert len(read.rejected) == 3 and read.chosen == (said("best"),)


def test_no_vote_no_row():
    talk = Judged()
    ask(talk, "q?", Reciter("a"), Reciter("b"))
    talk.tie()
    assert talk.dialogue[-1] == said("a") and not talk.candidates
    ask(talk, "r?", Reciter("a"), Reciter("b"))
    assert talk.take_back() == "r?" and talk.dialogue[-1] == said("a")
    assert talk.take_back() == "q?" and talk.dialogue == [] and talk.take_back() == ""
    ask(talk, "alone?", Reciter("only"))
    assert talk.dialogue[-1] == said("only") and not talk.candidates


def test_a_refused_question_is_taken_back():
    talk = Judged(dialogue=[SYSTEM])
    with pytest.raises(InputError, match="too long"):
        ask(talk, "q?", Reciter("a"), Reciter(InputError("this dialogue", "too long", "Begin anew")))
    assert talk.dialogue == [SYSTEM] and not talk.candidates


def test_stop_ends_all_answers_where_they_are(tmp_path):
    talk = Judged()
    asked = talk.ask("q?", {"A": Reciter("1 2 3", gate=tmp_path / "closed")}, SAMPLING, 1)
    next(asked)
    talk.stopped = True
    list(asked)
    assert talk.dialogue[-1] == said("1 2")


def test_a_page_that_is_closed_ends_the_sampling(tmp_path):
    talk = Judged()
    asked = talk.ask("q?", {"A": Reciter("1 2 3", gate=tmp_path / "closed")}, SAMPLING, 1)
    next(asked)
    asked.close()
    assert talk.stopped


@pytest.mark.parametrize(
    ("candidates", "told"),
    [
        ([("a", False), ("b", True)], "cut off"),
        ([(" ", True), ("b", True)], "empty"),
        ([("a", True), ("a", True), ("", False)], "no other answer"),
    ],
)
def test_votes_that_would_teach_what_nobody_meant_are_refused(candidates, told):
    candidates = [Candidate("A", *one) for one in candidates]
    with pytest.raises(InputError, match=told):
        row_of_vote([{"role": "user", "content": "q?"}], candidates, 0, SAMPLING)


def test_a_row_that_training_would_refuse_is_not_written():
    dialogue = [{"role": "user", "content": "q?"}, said(""), {"role": "user", "content": "r?"}]
    with pytest.raises(InputError, match=r"training would refuse the row: field 'prompt\[1\].content' is empty"):
        row_of_vote(dialogue, [Candidate("A", "a", True), Candidate("B", "b", True)], 0, SAMPLING)


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("votes.txt", None, "Name another file, such as votes=votes_2.jsonl"),
        ("votes.jsonl", '{"a": 1}\n[1]\n', "line 2 of it is not a JSON object"),
        ("votes.jsonl", "notes\n", "line 1 of it is not a JSON object"),
        ("gone/votes.jsonl", None, "there is no folder"),
        (".jsonl", None, "know"),
    ],
)
def test_a_file_that_cannot_hold_votes_is_refused(tmp_path, name, content, told):
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=told):
        votes_file(str(file))
    assert not file.exists() or file.read_text() == content


def test_a_line_is_appended_whole_to_what_is_there(tmp_path, monkeypatch):
    file = tmp_path / "votes.jsonl"
    file.write_text('{"mine": 1}')  # without a line end
    append_row(votes_file(str(file)), {"text": "é\n\u2028"})
    assert file.read_text().split("\n") == ['{"mine": 1}', '{"text": "é\\n\u2028"}', ""]


def _append_many(file, letter):
    for number in range(50):
        append_row(file, {"text": letter * 5000, "number": number})


def test_two_pages_may_append_to_one_file(tmp_path):
    file = tmp_path / "votes.jsonl"
    writers = [multiprocessing.Process(target=_append_many, args=(file, letter)) for letter in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = rows(file)
    assert len(found) == 100 and all(len(set(row["text"])) == 1 and len(row["text"]) == 5000 for row in found)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    """With a limit on the size of files, which ends a write in the middle as a full disk does."""
    file = tmp_path / "votes.jsonl"
    file.write_text('{"mine": 1}\n')
    writer = multiprocessing.Process(target=_append_beyond_a_limit, args=(file,))
    writer.start()
    writer.join()
    assert writer.exitcode == 0 and file.read_text() == '{"mine": 1}\n'


def _append_beyond_a_limit(file):
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    with pytest.raises(OSError):
        append_row(file, {"text": "x" * 500})


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dpo", "group_dpo"])
def test_pairs_and_groups_are_trained_on(tmp_path, monkeypatch, capsys, method):
    monkeypatch.chdir(tmp_path)
    file, talk = tmp_path / "votes.jsonl", Judged(dialogue=[SYSTEM])
    ask(talk, "Calculate 1 + 1.", Reciter("2"), Reciter("3"))
    talk.vote(0, file)
    ask(talk, "Calculate 1 + 2.", Reciter("4", "5"), Reciter("3", "6"), num_answers=2)
    talk.vote(2, file)
    words = [f"method={method}", "data=jsonl", f"data.path={file}", "model=pocket", "run_dir=run", *QUIET]
    words += [
        "trainer.max_steps=2",
        "data.validation_size=null",
        "data.global_batch_size=2",
        "data.batch_size_per_device=2",
    ]
    assert alignlab("train", *words, "data.max_tokens_per_sequence=512") == 0
    first, last = metrics(tmp_path / "run")
    assert last["rewards/margins"] > first["rewards/margins"] == 0
    assert "not read" not in capsys.readouterr().out
