"""The win rate against the policy before training, by a judge behind a real server."""

import json

import pytest

from tests.commands import QUIET, alignlab, summary
from tests.rewards.judge_server import Response, served
from tests.test_evaluate import LONGER, first_one, longer

WORDS = ["train", *QUIET, "callbacks=wins", "callbacks.exact_match=null", "callbacks.wins.num_prompts=6"]
WORDS += ["data.source.num_train=20", "data.source.num_validation=6", "data.global_batch_size=8", "optimizer.lr=0.03"]
WORDS += ["callbacks.wins.model=judge", "callbacks.wins.sampler.max_completion_tokens=12"]
WORDS += ["trainer.val_check_interval=1", "trainer.max_epochs=-1", "checkpoint.every_n_steps=1"]


def pairs(messages):
    """The two completions of each prompt, which is asked about in both orders."""
    found = {}
    for message in messages:
        found.setdefault(LONGER.sub("", message), []).append([text for _, _, text in LONGER.findall(message)])
    assert all(len(orders) == 2 and orders[0] == orders[1][::-1] for orders in found.values())
    return {prompt: set(orders[0]) for prompt, orders in found.items()}


def rates(folder):
    lines = (folder / "metrics.csv").read_text().splitlines()
    place = lines[0].split(",").index("val/win_rate")
    return [float(cells[place]) for cells in (line.split(",") for line in lines[1:]) if cells[place]]


def test_each_validation_compares_with_the_policy_before_training(tmp_path):
    """Also that of a resumed run: one completion of every pair is the same in both validations."""
    with served(longer) as server:
        typed = [*WORDS, f"callbacks.wins.endpoint={server.url}", f"run_dir={tmp_path / 'run'}"]
        assert alignlab(*typed, "trainer.max_steps=1") == 0
        first = pairs(server.messages)
        server.bodies.clear()
        assert alignlab(*typed, "trainer.max_steps=2", "resume=auto") == 0
        second = pairs(server.messages)
    assert first.keys() == second.keys() and len(first) == 6
    wins = []
    for prompt, both in second.items():
        (before,) = both & first[prompt]
        own = next(iter(both - {before}), before)
        wins.append(((len(own) > len(before)) - (len(own) < len(before)) + 1) / 2)
    assert rates(tmp_path / "run")[-1] == pytest.approx(sum(wins) / 6)
    assert summary(tmp_path / "run")["metrics"]["val/win_rate"] == pytest.approx(rates(tmp_path / "run")[-1])
    assert len(rates(tmp_path / "run")) == 2


def test_a_judge_that_prefers_a_position_gives_half(tmp_path):
    with served(first_one) as server:
        typed = [*WORDS, f"callbacks.wins.endpoint={server.url}", f"run_dir={tmp_path / 'run'}"]
        assert alignlab(*typed, "trainer.max_steps=1") == 0
    assert rates(tmp_path / "run") == [0.5]


def test_a_judge_without_a_verdict_is_told(tmp_path, capsys):
    with served(lambda *_: Response("no idea")) as server:
        typed = [*WORDS, f"callbacks.wins.endpoint={server.url}", f"run_dir={tmp_path / 'run'}"]
        assert alignlab(*typed, "trainer.max_steps=1") == 0
    assert "questions without a verdict" in "".join(capsys.readouterr())
    assert "val/win_rate" not in json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]


def test_an_endpoint_that_does_not_answer_is_refused(tmp_path, capsys):
    typed = [*WORDS, "callbacks.wins.endpoint=http://127.0.0.1:9", f"run_dir={tmp_path / 'run'}"]
    assert alignlab(*typed, "callbacks.wins.num_retries=0", "trainer.max_steps=1") == 2
    assert "callbacks.wins.endpoint" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["callbacks.wins.temprature=1", "callbacks.wins.num_prompts=0"])
def test_keys_are_checked(word):
    assert alignlab(*WORDS, "callbacks.wins.endpoint=http://127.0.0.1:9", word) == 2
