"""Answers whose beginning is given: what generation sees of them is that of ``continue_final_message``."""

from dataclasses import replace

import pytest

from alignlab.data.formats import to_row
from alignlab.data.formats.conversions import convert
from alignlab.data.formats.messages import split_opened
from alignlab.data.preview import decode_segments
from alignlab.data.sources.files.record import Record
from alignlab.data.tokenise.rows import tokenize
from alignlab.errors import InputError
from alignlab.types.rows import Demonstration, Preference, Prompt, Unpaired
from tests.data.tokenise.test_rows import tokenizer  # noqa: F401  (a fixture of many tokenizers)
from tests.data.tokenise.tiny_tokenizers import CHATML, assistant, byte_tokenizer, token_settings, user

OPENED = [{"role": "system", "content": "Be kind."}, user("One"), assistant("First"), user("Two")]
PREFIX = assistant("Sure: the <b>", prefix=True)
TRIMS = CHATML.replace("message.content", "message.content | trim")
THINKS = CHATML.replace("assistant\\n' }}{% endif", "assistant\\n<think>\\n' }}{% endif").replace(
    "message.content ~", "(('<think>\\n\\n</think>\\n\\n' if message.role == 'assistant') or '') ~ message.content ~"
)


def read(record, kind=None, format="auto"):
    row = to_row(Record("f.jsonl:1", record), format, {})
    return row if kind is None else convert(row, kind)


def continued(tokenizer, messages):  # noqa: F811
    """The slow reference: Transformers' own rendering of the dialogue without its end."""
    plain = [{key: value for key, value in message.items() if key != "prefix"} for message in messages]
    text = tokenizer.apply_chat_template(plain, tokenize=False, continue_final_message=True)
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("record", [{"prompt": [*OPENED, PREFIX]}, {"messages": [*OPENED, PREFIX], "id": 1}])
def test_a_prompt_is_what_transformers_continues(tokenizer, record):  # noqa: F811
    row = read(record, Prompt)
    tokens = tokenize(row, tokenizer, token_settings())
    assert tokens.tokens == continued(tokenizer, [*OPENED, PREFIX])
    assert not any(tokens.supervised) and tokens.groups == [[len(tokens.tokens)]]
    before, prefix = split_opened(row.prompt)
    assert (before, prefix) == (list(row.prompt[:-1]), "Sure: the <b>")


def test_a_demonstration_supervises_what_follows(tokenizer):  # noqa: F811
    row = read({"prompt": [*OPENED, PREFIX], "completion": " end"})
    assert isinstance(row, Demonstration) and row.messages[-1]["content"] == "Sure: the <b> end"
    last = token_settings(loss_on="last")
    tokens, given = tokenize(row, tokenizer, last), continued(tokenizer, [*OPENED, PREFIX])
    ((length, _),) = tokens.groups
    assert tokens.tokens[:length] == given and all(tokens.supervised[length:])
    whole = tokenize(replace(row, messages=(*OPENED, assistant("Sure: the <b> end"))), tokenizer, last)
    assert tokenizer.decode(tokens.tokens) == tokenizer.decode(whole.tokens)
    assert tokenize(convert(row, Prompt), tokenizer, token_settings()).tokens == given


@pytest.mark.parametrize("template", [CHATML, TRIMS, THINKS])
@pytest.mark.parametrize("prefix", ["Sure,", "Sure, ", "<think>", "A<|im_end|>B"])
def test_its_end_may_be_blank_or_look_like_a_token(template, prefix):
    tiny = byte_tokenizer(template=template)
    row = read({"prompt": [user("Q"), assistant(prefix, prefix=True)], "completion": "yes"})
    tokens = tokenize(row, tiny, token_settings())
    *context, last = decode_segments(tokens, tiny)
    assert last == ("completion 1", True, "yes<|im_end|>")
    assert tokenize(convert(row, Prompt), tiny, token_settings()).tokens == tokens.tokens[: tokens.groups[0][0]]
    opened = "<think>\n\n</think>\n\n" if template == THINKS else ""
    assert context[-1].text.endswith(f"assistant\n{opened}{prefix}")


def test_a_token_across_the_end_of_the_prefix_is_split_there():
    merged = byte_tokenizer(template=CHATML, merges=[("a", "b")])
    row = read({"prompt": [user("Q"), assistant("a", prefix=True)], "completion": "b"})
    tokens = tokenize(row, merged, token_settings())
    assert merged.convert_ids_to_tokens(tokens.tokens[-3:]) == ["a", "b", "<|im_end|>"]
    assert tokens.supervised[-3:] == [False, True, True]


def test_comparisons_share_the_prefix_in_their_prompt():
    tiny = byte_tokenizer(template=CHATML)
    prompt = [user("Q"), assistant("It is ", prefix=True)]
    pair = read({"prompt": prompt, "chosen": "4", "rejected": ["5", "22"]}, Preference)
    pieces = {segment.piece: segment.text for segment in decode_segments(tokenize(pair, tiny, token_settings()), tiny)}
    assert pieces["prompt"].endswith("<|im_start|>assistant\nIt is ")
    assert [pieces[f"completion {n}"] for n in (1, 2, 3)] == ["4<|im_end|>", "5<|im_end|>", "22<|im_end|>"]
    one = read({"prompt": prompt, "completion": "4", "label": True}, Unpaired)
    tokens = tokenize(one, tiny, token_settings())
    given = tokenize(convert(one, Prompt), tiny, token_settings()).tokens
    assert (
        tokens.tokens[: tokens.groups[0][0]] == given == tokenize(convert(pair, Prompt), tiny, token_settings()).tokens
    )


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"prompt": [user("q"), assistant("a")]}, "ends with role 'assistant'"),
        ({"prompt": [user("q"), assistant("a", prefix="x")]}, "'prompt[1].prefix' is a text where true or false"),
        ({"prompt": [user("q") | {"prefix": True}]}, "only a message of the assistant can be continued"),
        ({"messages": [user("q"), PREFIX, user("r"), assistant("a")]}, "only the last message can be continued"),
        ({"prompt": [user("q"), PREFIX], "completion": [user("r"), assistant("a")]}, "cannot continue the opened"),
        (
            {"prompt": [user("q"), assistant("a", prefix=True, tool_calls=[{"name": "f", "arguments": {}}])]},
            "a message with tool calls cannot be continued",
        ),
    ],
)
def test_what_cannot_be_continued_is_refused(record, why):
    with pytest.raises(InputError) as refused:
        read(record)
    assert why in refused.value.why


def test_a_prompt_is_not_a_demonstration():
    with pytest.raises(InputError, match="the method needs a Demonstration"):
        read({"messages": [user("q"), PREFIX]}, Demonstration)
