from dataclasses import replace

import pytest
from jinja2 import TemplateError
from transformers import AutoTokenizer

from alignlab.data.tokenise.rows import tokenize
from alignlab.data.tokenise.templates import choose_template, render, set_template
from alignlab.data.tokenise.turn_ends import stop_tokens
from alignlab.errors import InputError
from alignlab.types.rows import Prompt
from tests.data.tokenise.tiny_tokenizers import CHATML, assistant, byte_tokenizer, token_settings, user

DIALOGUE = (user("Hi"), assistant("Hello"))


def test_auto_takes_the_tokenizers_own_without_a_word():
    template = choose_template(byte_tokenizer(template=CHATML), "auto")
    assert (template.name, template.text, template.announcement) == ("auto", CHATML, "")


@pytest.mark.parametrize(("markers", "fallback"), [(("<|im_start|>", "<|im_end|>"), "chatml"), ((), "plain")])
def test_auto_announces_its_fallback(markers, fallback):
    template = choose_template(byte_tokenizer(markers=markers), "auto")
    assert template.name == fallback
    assert fallback in template.announcement


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("chatml", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"),
        ("plain", "User:\nHi\n\nAssistant:\nHello</s>\n\n"),
        ("none", "HiHello</s>"),
    ],
)
def test_named_templates(name, text):
    tokenizer = byte_tokenizer()
    assert render(choose_template(tokenizer, name), tokenizer, DIALOGUE) == text


@pytest.mark.parametrize("name", ["chatml", "plain", "none"])
def test_named_templates_open_with_bos_only_where_the_tokenizer_does(name):
    with_bos, without = byte_tokenizer(adds_bos=True), byte_tokenizer()
    text = render(choose_template(with_bos, name), with_bos, DIALOGUE)
    assert text == "<s>" + render(choose_template(without, name), without, DIALOGUE)


@pytest.mark.parametrize("name", ["chatml", "plain"])
def test_named_templates_lose_nothing_of_an_answer(name):
    tokenizer = byte_tokenizer()
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    answer = assistant("It is", reasoning_content="because", tool_calls=[call])
    text = render(choose_template(tokenizer, name), tokenizer, (user("Q"), answer), tools=[{"name": "add"}])
    assert '[{"name": "add"}]' in text
    assert '<think>\nbecause\n</think>\n\nIt is\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}' in text


def test_none_does_not_double_an_eos_that_the_content_brings():
    tokenizer = byte_tokenizer()
    assert render(choose_template(tokenizer, "none"), tokenizer, (assistant("A</s>"),)) == "A</s>"


def test_template_from_a_file(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }}!")
    tokenizer = byte_tokenizer()
    assert render(choose_template(tokenizer, str(file)), tokenizer, DIALOGUE) == "Hi!"


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'chatml'"):
        choose_template(byte_tokenizer(), "chatlm")


@pytest.mark.parametrize(
    ("name", "lack", "message"),
    [
        ("chatml", {"markers": ()}, "not single tokens"),
        ("plain", {"eos": None}, "no eos_token"),
        ("none", {"eos": None}, "no eos_token"),
    ],
)
def test_named_template_refuses_a_tokenizer_that_cannot(name, lack, message):
    with pytest.raises(InputError, match=message):
        choose_template(byte_tokenizer(**lack), name)


def test_the_chosen_template_is_saved_with_the_tokenizer(tmp_path):
    tokenizer = byte_tokenizer(markers=())
    template = set_template(tokenizer, "auto")
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == template.text


THINKING = CHATML.replace("assistant\\n'", "assistant\\n' ~ ('' if enable_thinking else '<no>') ~ (date or '')")


@pytest.mark.parametrize("name", ["auto", "file"])
def test_variables_reach_every_rendering(name, tmp_path):
    (tmp_path / "file").write_text(THINKING)
    name = str(tmp_path / "file") if name == "file" else name
    tokenizer = byte_tokenizer(template=THINKING)
    template = set_template(tokenizer, name, {"enable_thinking": True, "date": "5 May"})
    prompt = render(template, tokenizer, DIALOGUE[:1], add_generation_prompt=True)
    assert prompt.endswith("<|im_start|>assistant\n5 May")
    settings = token_settings(chat_template=name, chat_template_kwargs={"enable_thinking": True, "date": "5 May"})
    row = tokenize(Prompt(origin="p:1", prompt=DIALOGUE[:1]), tokenizer, settings)
    assert tokenizer.decode(row.tokens) == prompt
    other, fresh = replace(settings, chat_template_kwargs={"date": "6 May"}), byte_tokenizer(template=THINKING)
    assert tokenizer.decode(tokenize(Prompt(origin="p:1", prompt=DIALOGUE[:1]), fresh, other).tokens).endswith(
        "assistant\n<no>6 May"
    )


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"enable_thinkng": False}, r"enable_thinkng: False.*reads no variable.*Did you mean 'enable_thinking'"),
        ({"messages": []}, r"each rendering sets 'messages' itself.*data\.prepend"),
        ({"tools": []}, r"each rendering sets 'tools' itself.*column 'tools'"),
        ({"add_generation_prompt": True}, "each rendering sets 'add_generation_prompt' itself.*Leave it out"),
        ({"eos_token": "</s>"}, "each rendering sets 'eos_token' itself"),
    ],
)
def test_variables_that_cannot_be_set(variables, message):
    with pytest.raises(InputError, match=message):
        choose_template(byte_tokenizer(template=THINKING), "auto", variables)


def test_a_template_without_variables_refuses_them():
    with pytest.raises(InputError, match=r"chat_template=chatml reads no variable 'date'.*Leave it out"):
        choose_template(byte_tokenizer(), "chatml", {"date": "5 May"})


def test_stop_tokens_are_eos_and_the_end_of_a_turn():
    tokenizer = byte_tokenizer(template=CHATML)
    stop = stop_tokens(tokenizer, choose_template(tokenizer, "auto"))
    assert set(tokenizer.convert_ids_to_tokens(stop)) == {"</s>", "<|im_end|>"}


def test_an_ordinary_token_behind_an_answer_is_no_stop_token():
    tokenizer = byte_tokenizer(template="{% for m in messages %}{{ m.content }}\n{% endfor %}")
    assert stop_tokens(tokenizer, choose_template(tokenizer, "auto")) == {tokenizer.eos_token_id}


def test_stop_tokens_of_a_template_that_refuses_the_probe():
    tokenizer = byte_tokenizer(template="{{ raise_exception('no') }}")
    template = choose_template(tokenizer, "auto")
    assert stop_tokens(tokenizer, template) == {tokenizer.eos_token_id}
    with pytest.raises(TemplateError):
        render(template, tokenizer, DIALOGUE)


def test_empty_content_renders_as_empty_text():
    tokenizer = byte_tokenizer()
    template = choose_template(tokenizer, "plain")
    assert render(template, tokenizer, [assistant(None)]) == "Assistant:\n</s>\n\n"
    assert render(template, tokenizer, [], add_generation_prompt=True) == "Assistant:\n"


VALUES = {"enable_thinking": True, "date": "5 'May'", "nothing": None, "steps": [1, {"a": False}]}


def test_a_saved_template_has_the_variables_of_training_as_defaults(tmp_path):
    template = THINKING + "{{ nothing is none }}{{ steps[1].a }}{{ date }}"
    tokenizer = byte_tokenizer(template={"default": template, "tool_use": template + "{{ tools }}"})
    for _ in range(2):  # as where a run goes on from the model of another
        set_template(tokenizer, "auto", VALUES)
    tokenizer.save_pretrained(tmp_path)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    options = {"tokenize": False, "add_generation_prompt": True}
    served = opened.apply_chat_template(list(DIALOGUE[:1]), **options)
    assert served == render(choose_template(tokenizer, "auto", VALUES), tokenizer, DIALOGUE[:1], None, True)
    assert served.endswith("assistant\n5 'May'TrueFalse5 'May'")
    assert "<no>" in opened.apply_chat_template(list(DIALOGUE[:1]), enable_thinking=False, **options)
