"""Tokenizers with several templates of their own: ``default``, ``tool_use`` and others, as Command R has."""

import pytest
from transformers import AutoTokenizer

from alignlab.data.table.cache import table_key
from alignlab.data.tokenise.rows import tokenize
from alignlab.data.tokenise.templates import choose_template, set_template
from alignlab.data.tokenise.turn_ends import stop_tokens
from alignlab.errors import InputError
from alignlab.types.rows import Demonstration
from tests.data.tokenise.tiny_tokenizers import CHATML, assistant, byte_tokenizer, token_settings, user

TOOLS = "{%- for tool in tools %}{{ tool | tojson }}{% endfor %}" + CHATML.replace("<|im_end|>", "<|call_end|>")
SHORT = "{%- for m in messages %}{{ m.content ~ eos_token }}{% endfor %}"
TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
TALK = (user("Q"), assistant("A"))
MARKERS = ("<|im_start|>", "<|im_end|>", "<|call_end|>")
OWN = {"default": CHATML, "tool_use": TOOLS, "short": SHORT}


def named(**own) -> object:
    return byte_tokenizer(template=own or OWN, markers=MARKERS)


def text_of(tokenizer, tools=None, **settings) -> str:
    row = Demonstration(origin="r:1", messages=TALK, tools=tools)
    return tokenizer.decode(tokenize(row, tokenizer, token_settings(**settings)).tokens)


@pytest.mark.parametrize("tools", [None, (TOOL,)], ids=["without tools", "with tools"])
def test_auto_renders_each_row_with_the_template_that_transformers_takes(tools):
    tokenizer = named()
    theirs = tokenizer.apply_chat_template(list(TALK), tools=tools and list(tools), tokenize=False)
    assert text_of(tokenizer, tools) == theirs.rstrip()
    assert ("clock" in theirs) == bool(tools)


def test_a_template_by_its_name():
    assert text_of(named(), chat_template="short") == "Q</s>A</s>"
    with pytest.raises(InputError, match=r"'clock'.*Type data.chat_template=tool_use or chatml or plain; or"):
        text_of(named(), (TOOL,), chat_template="default")
    with pytest.raises(InputError, match="Did you mean 'tool_use'"):
        choose_template(named(), "tool_uses")


def test_a_list_of_templates_is_read_as_transformers_stores_it():
    tokenizer = named()
    tokenizer.chat_template = [{"name": name, "template": text} for name, text in OWN.items()]
    assert text_of(tokenizer, chat_template="short") == "Q</s>A</s>"
    assert set_template(tokenizer, "auto").tool_text == TOOLS and tokenizer.chat_template == OWN


def test_without_a_default_the_names_are_said():
    tokenizer = named(tool_use=TOOLS, short=SHORT)
    with pytest.raises(InputError, match=r"Type data.chat_template=tool_use or short;"):
        text_of(tokenizer)
    assert text_of(tokenizer, chat_template="short") == "Q</s>A</s>"


def test_generation_stops_on_the_ends_of_both():
    tokenizer = named()
    stop = stop_tokens(tokenizer, choose_template(tokenizer, "auto"))
    assert set(tokenizer.convert_ids_to_tokens(sorted(stop))) == {"</s>", "<|im_end|>", "<|call_end|>"}


@pytest.mark.parametrize("chosen", ["auto", "tool_use", "short"])
def test_all_are_saved(tmp_path, chosen):
    tokenizer = named()
    set_template(tokenizer, chosen)
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == OWN


def test_the_cache_depends_on_the_template_for_tools():
    keys = [
        table_key("abc", tokenizer, token_settings(), Demonstration)
        for tokenizer in (named(), named(default=CHATML, tool_use=TOOLS + " "))
    ]
    assert keys[0] != keys[1]


def test_variables_of_either_template():
    tokenizer = named(default=CHATML, tool_use=TOOLS + "{{ lang }}")
    assert choose_template(tokenizer, "auto", {"lang": "eo"}).variables == {"lang": "eo"}
