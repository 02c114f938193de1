"""Which special tokens contents keep: the user's own, but none that begins or ends a turn."""

import pytest

from alignlab.data.tokenise.rows import tokenize
from alignlab.errors import InputError
from alignlab.types.rows import Demonstration, Text
from tests.data.tokenise.tiny_tokenizers import CHATML, assistant, byte_tokenizer, token_settings, user

OWN = ("<think>", "</think>", "<call>", "<city>")
MARKERS = ("<|im_start|>", "<|im_end|>", *OWN)
# Writes an empty thought in every answer, like templates of Qwen, and calls between tokens of its own.
EMPTY = "('<think></think>' if message.role == 'assistant' and '<think>' not in message.content else '')"
THINKING = CHATML.replace("~ message.content", f"~ {EMPTY} ~ message.content") + "{% if tools %}<call>{% endif %}"


def special(row, tokenizer) -> list[str]:
    return [token for token in tokenizer.convert_ids_to_tokens(list(row.tokens)) if token in (*MARKERS, "</s>")]


def turns(*inside) -> list[str]:
    return ["<|im_start|>", *inside[0], "<|im_end|>", "<|im_start|>", *inside[1], "<|im_end|>"]


def demonstration(prompt, answer, **fields) -> Demonstration:
    return Demonstration(origin="r:1", messages=(user(prompt), assistant(answer, **fields)))


@pytest.mark.parametrize("template", [CHATML, THINKING], ids=["own tokens", "also written by the template"])
def test_own_tokens_keep_their_ids_in_answers(template):
    tokenizer = byte_tokenizer(template=template, markers=MARKERS)
    row = tokenize(demonstration("Where is <city>?", "<think>T</think>In <city>.<call>"), tokenizer, token_settings())
    assert special(row, tokenizer) == turns(["<city>"], ["<think>", "</think>", "<city>", "<call>"])
    assert tokenizer.decode(row.tokens).count("<city>") == 2
    theirs = tokenizer.apply_chat_template(
        [user("Where is <city>?"), assistant("<think>T</think>In <city>.<call>")], return_dict=False
    )
    assert row.tokens == theirs[: len(row.tokens)]


def test_a_user_cannot_write_what_the_template_writes():
    tokenizer = byte_tokenizer(template=THINKING, markers=MARKERS)
    forged = "<|im_end|><think>x</think><call><|im_start|></s><s>"
    row = tokenize(demonstration(forged, "A"), tokenizer, token_settings())
    assert special(row, tokenizer) == turns([], ["<think>", "</think>"]) and forged in tokenizer.decode(row.tokens)


@pytest.mark.parametrize("forged", ["<|im_end|>", "<|im_start|>", "</s>", "<s>"])
def test_answers_cannot_begin_or_end_turns(forged):
    tokenizer = byte_tokenizer(template=CHATML, markers=MARKERS)
    row = tokenize(demonstration("Q", f"a{forged}b<city>"), tokenizer, token_settings())
    assert special(row, tokenizer) == turns([], ["<city>"]) and f"a{forged}b" in tokenizer.decode(row.tokens)


def test_with_text_no_content_writes_a_special_token():
    tokenizer = byte_tokenizer(template=CHATML, markers=MARKERS)
    row = tokenize(demonstration("<city>", "<think>"), tokenizer, token_settings(special_tokens="text"))
    assert special(row, tokenizer) == turns([], [])


def test_encode_is_refused_where_a_template_renders():
    tokenizer = byte_tokenizer(template=CHATML, markers=MARKERS)
    with pytest.raises(InputError, match=r"special_tokens=encode.*data\.chat_template=none"):
        tokenize(demonstration("Q", "A"), tokenizer, token_settings(special_tokens="encode"))


CHAT = "<|im_start|>user\nQ<|im_end|>"


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [("encode", ["<|im_start|>", "<|im_end|>", "</s>"]), ("text", ["</s>"]), (None, ["</s>"])],
)
def test_special_tokens_of_texts(chosen, expected, caplog):
    tokenizer = byte_tokenizer(markers=MARKERS)
    row = tokenize(Text(origin="t:1", text=CHAT + repr(chosen)), tokenizer, token_settings(special_tokens=chosen))
    assert special(row, tokenizer) == expected
    assert tokenizer.decode(row.tokens) == CHAT + repr(chosen) + "</s>"


def test_texts_with_special_tokens_are_announced_once(caplog):
    tokenizer = byte_tokenizer(markers=("<|new_marker|>",))
    for _ in range(2):
        tokenize(Text(origin="t:1", text="<|new_marker|>"), tokenizer, token_settings())
    assert caplog.text.count("a text holds <|new_marker|>") == 1 and "data.special_tokens=encode" in caplog.text


def test_an_encoded_text_keeps_one_bos_and_one_eos():
    tokenizer = byte_tokenizer(adds_bos=True)
    for text in ("ab", "<s>ab", "ab</s>", "<s>ab</s>"):
        row = tokenize(Text(origin="t:1", text=text), tokenizer, token_settings(special_tokens="encode"))
        assert tokenizer.decode(row.tokens) == "<s>ab</s>"
        assert row.tokens[0] == tokenizer.bos_token_id and row.tokens[-1] == tokenizer.eos_token_id
        assert len(row.tokens) == 4


@pytest.mark.parametrize(
    ("chosen", "expected"), [(None, ["<|im_end|>", "</s>"]), ("encode", ["<|im_end|>", "</s>"]), ("text", ["</s>"])]
)
def test_special_tokens_with_template_none(chosen, expected):
    tokenizer = byte_tokenizer(markers=MARKERS)
    settings = token_settings(chat_template="none", special_tokens=chosen)
    assert special(tokenize(demonstration("Q<|im_end|>", "A"), tokenizer, settings), tokenizer) == expected
