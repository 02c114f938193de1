"""What a row has of tools, calls, results and reasoning is rendered, or refused with what to type instead."""

import re

import pytest

from alignlab.data.tokenise.rows import tokenize
from alignlab.data.tokenise.templates import choose_template, render
from alignlab.errors import InputError
from alignlab.types.rows import Demonstration, Preference, Prompt
from tests.data.tokenise.tiny_tokenizers import CHATML, assistant, byte_tokenizer, token_settings, user

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": 'Its "name"', "enum": ["Oslo", "Rome"]},
                "when": {"type": "object", "properties": {"day": {"type": "integer"}}},
            },
            "required": ["city"],
        },
    },
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": 'Os"lo', "when": [{"day": 3}]}}}
RESULT = {"role": "tool", "name": "weather", "content": 'cold,\n"very"'}
ASKED = (user("Weather of a city? Type city: string, day 3"), assistant("", tool_calls=[CALL]), RESULT)

# Each template writes everything but one part.
WHOLE = (
    "{%- for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    "{%- for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\\n' ~ (m.reasoning_content or '') }}"
    "{%- if m.role == 'tool' %}{{ m.content | tojson }}{% else %}{{ m.content }}{% endif %}"
    "{%- for c in m.tool_calls or [] %}{{ c.function.name }}{% for k, v in c.function.arguments.items() %}"
    "{{ '<' ~ k ~ '>' ~ (v if v is string else v | tojson) }}{% endfor %}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LOSSES = {
    "tools": ("{{ t | tojson }}", "", "leaves out the tool 'weather'"),
    "parameters": (
        "{{ t | tojson }}",
        "{{ t.function.name ~ t.function.description }}",
        "leaves out the parameter 'city'",
    ),
    "descriptions": (
        "{{ t | tojson }}",
        "{{ t.function.name ~ t.function.parameters }}",
        "the description of the tool 'weather'",
    ),
    "arguments": ("'<' ~ k ~ '>' ~ (v if v is string else v | tojson)", "''", "the argument 'city' of a call"),
    "nested arguments": ("v | tojson", "''", "the argument 'day' of a call"),
    "results": ("{{ m.content | tojson }}", "", "leaves out the result of a tool"),
    "reasoning": ("(m.reasoning_content or '')", "''", "leaves out"),
}
ANSWER = assistant("Cold.", reasoning_content="because")


def demonstration(**fields) -> Demonstration:
    return Demonstration(**{"origin": "r:1", "messages": (*ASKED, ANSWER), "tools": (TOOL,), **fields})


def refused(row, tokenizer, **settings) -> InputError:
    with pytest.raises(InputError) as caught:
        tokenize(row, tokenizer, token_settings(**settings))
    return caught.value


def test_a_template_that_writes_everything_in_a_notation_of_its_own():
    tokenizer = byte_tokenizer(template=WHOLE)
    text = tokenizer.decode(tokenize(demonstration(), tokenizer, token_settings()).tokens)
    assert 'weather<city>Os"lo<when>[{"day": 3}]' in text and '"cold,\\n\\"very\\""' in text and "because" in text


@pytest.mark.parametrize("loss", LOSSES)
def test_a_template_that_leaves_out_a_part_is_refused_with_templates_that_write_it(loss):
    written, instead, why = LOSSES[loss]
    assert written in WHOLE
    tokenizer = byte_tokenizer(template=WHOLE.replace(written, instead))
    error = refused(demonstration(), tokenizer)
    assert why in error.why and "r:1 with data.chat_template=auto" in error.asked
    for name in re.search(r"Type data\.chat_template=(\w+) or (\w+)", error.instead).groups():
        tokens = tokenize(demonstration(), tokenizer, token_settings(chat_template=name)).tokens
        assert "because" in tokenizer.decode(tokens)


def test_the_remedy_names_only_templates_that_work_for_the_row():
    error = refused(demonstration(), byte_tokenizer(template=CHATML, markers=("<|im_end|>",)))
    assert error.instead.startswith("Type data.chat_template=plain; or data.chat_template=FILE")
    error = refused(demonstration(), byte_tokenizer(template=CHATML, eos=None, bos=None))
    assert error.instead.startswith("Type data.chat_template=chatml; or data.chat_template=FILE")
    answerless = byte_tokenizer(template=CHATML, eos=None, markers=("<|im_end|>",))
    assert refused(demonstration(), answerless).instead.startswith("Type data.chat_template=FILE")


@pytest.mark.parametrize(
    "row",
    [
        Prompt(origin="r:1", prompt=ASKED, tools=(TOOL,)),
        Preference(
            origin="r:1", prompt=ASKED, chosen=(ANSWER,), rejected=((assistant("Hot."),),), tools=(TOOL,), scores=None
        ),
        demonstration(messages=(user("Q"), assistant("A"))),
    ],
    ids=["prompt", "preference", "tools that are not called"],
)
def test_every_kind_of_row_is_checked(row):
    assert "leaves out the tool 'weather'" in refused(row, byte_tokenizer(template=CHATML)).why


def test_reasoning_that_a_template_removes_from_earlier_turns_is_not_lost():
    template = WHOLE.replace(
        "(m.reasoning_content or '')", "(m.reasoning_content if m.reasoning_content and loop.last else '')"
    )
    tokenizer = byte_tokenizer(template=template)
    earlier = (user("Q"), assistant("A", reasoning_content="old"), user("R"), assistant("B", reasoning_content="new"))
    row = tokenize(demonstration(messages=earlier, tools=None), tokenizer, token_settings(loss_on="last"))
    assert "new" in tokenizer.decode(row.tokens) and "old" not in tokenizer.decode(row.tokens)


@pytest.mark.parametrize("field", ["thinking", "reasoning"])
def test_reasoning_goes_to_the_field_that_the_template_reads(field):
    tokenizer = byte_tokenizer(template=WHOLE.replace("reasoning_content", field))
    assert "because" in render(choose_template(tokenizer, "auto"), tokenizer, (user("Q"), ANSWER))
