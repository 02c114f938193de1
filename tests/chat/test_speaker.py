"""A model that answers in a dialogue."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from alignlab.chat.settings import SpeakerSettings
from alignlab.chat.speaker import Speaker
from alignlab.chat.terminal import talk
from alignlab.errors import InputError
from alignlab.models.opened import open_trained
from alignlab.rollout.sampler.generate import complete

GREEDY = SpeakerSettings(temperature=0.0, top_p=1.0, top_k=0, max_tokens=40)
QUESTION = "Calculate 20 + 5."


@pytest.fixture(scope="module")
def speaker():
    model, tokenizer = open_trained("pocket", dtype="auto", device="cpu", trust_remote_code=False)
    return Speaker(model=model, tokenizer=tokenizer, chat_template="auto", variables={})


def expected(speaker, messages):
    """The answer by the sampler of rollouts, on tokens rendered apart from the speaker."""
    text = speaker.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = speaker.tokenizer(text, add_special_tokens=False).input_ids
    limits = {"max_completion_tokens": 40, "stop_tokens": speaker.stop_tokens, "pad_token_id": 0, "batch_size": 1}
    return speaker.tokenizer.decode(complete(speaker.model, [ids], **limits)[0], skip_special_tokens=True)


def test_a_greedy_answer_is_that_of_the_sampler_and_comes_in_pieces(speaker):
    pieces = []
    answer = speaker.answer([{"role": "user", "content": QUESTION}], GREEDY, pieces.append).text
    assert answer == expected(speaker, [{"role": "user", "content": QUESTION}])
    assert "<answer>" in answer and len(pieces) > 1 and "".join(pieces) == answer


def test_an_answer_ends_at_the_stop_tokens_of_training(speaker, monkeypatch):
    question = [{"role": "user", "content": QUESTION}]
    whole = speaker.answer(question, GREEDY, str).text
    third = speaker.tokenizer(whole, add_special_tokens=False).input_ids[2]
    monkeypatch.setattr(speaker, "stop_tokens", [third])
    answer = speaker.answer(question, GREEDY, str).text
    assert whole.startswith(answer) and 0 < len(answer) < len(whole) / 2


def test_an_answer_says_whether_it_was_cut_off(speaker):
    question = [{"role": "user", "content": QUESTION}]
    whole = speaker.answer(question, GREEDY, str)
    assert whole.finished
    cut = speaker.answer(question, replace(GREEDY, max_tokens=5), str)
    assert not cut.finished and whole.text.startswith(cut.text)
    asked = iter([False, False, True])
    stopped = speaker.answer(question, GREEDY, str, lambda: next(asked))
    assert not stopped.finished and whole.text.startswith(stopped.text) and len(stopped.text) < len(cut.text)


def test_sampling_has_the_settings_and_not_those_of_the_model(speaker, monkeypatch):
    monkeypatch.setattr(speaker.model.generation_config, "temperature", 1e-4)
    monkeypatch.setattr(speaker.model.generation_config, "top_k", 1)
    hot = SpeakerSettings(temperature=3.0, top_p=1.0, top_k=0, max_tokens=20)
    answers = set()
    for seed in range(3):
        torch.manual_seed(seed)
        answers.add(speaker.answer([{"role": "user", "content": QUESTION}], hot, str).text)
    assert len(answers) == 3
    torch.manual_seed(0)
    assert speaker.answer([{"role": "user", "content": QUESTION}], hot, str).text in answers


def test_a_dialogue_keeps_its_turns_and_commands_change_it(speaker, capsys):
    lines = [QUESTION, "/undo", "Calculate 7 + 1.", "", "/unknown", "And 2?", "/quit", "never"]
    dialogue = talk(speaker, GREEDY, None, lines)
    assert [message["content"] for message in dialogue[::2]] == ["Calculate 7 + 1.", "And 2?"]
    assert dialogue[3]["content"] == expected(speaker, dialogue[:3])
    assert "/system TEXT" in capsys.readouterr().out
    assert talk(speaker, GREEDY, None, [QUESTION, "/system Be brief."]) == [{"role": "system", "content": "Be brief."}]
    assert talk(speaker, GREEDY, "Be brief.", ["/system"]) == []


def test_a_question_that_is_refused_is_taken_back(speaker, capsys):
    long = "7 " * speaker.model.config.max_position_embeddings
    assert talk(speaker, GREEDY, None, [long]) == []
    assert "the model reads" in capsys.readouterr().err
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    speaker.tokenizer.chat_template, kept = strict, speaker.tokenizer.chat_template
    with pytest.raises(InputError, match="no system"):
        speaker.answer([{"role": "system", "content": "x"}], GREEDY, str)
    speaker.tokenizer.chat_template = kept


def test_ctrl_c_keeps_what_was_said(speaker):
    def interrupt(piece):
        raise KeyboardInterrupt

    answer = speaker.answer([{"role": "user", "content": QUESTION}], GREEDY, interrupt).text
    assert answer and expected(speaker, [{"role": "user", "content": QUESTION}]).startswith(answer)


def test_the_verb_answers_what_is_piped_to_it(tmp_path, speaker):
    words = ["chat", "pocket", "sampling.temperature=0", "sampling.max_tokens=40"]
    command = [sys.executable, "-m", "alignlab.cli.main", *words]
    options = {"input": f"{QUESTION}\n", "capture_output": True, "text": True, "cwd": tmp_path}
    done = subprocess.run(command, timeout=120, check=True, **options)
    assert done.stdout.strip() == expected(speaker, [{"role": "user", "content": QUESTION}])
    assert not list(tmp_path.iterdir())
