"""Turns of templates that write earlier turns in another way, against a slow reference: each turn rendered by itself.

The reference renders the messages before a turn with the opening of an answer, and the messages up to the turn, and
encodes both. Every supervised token of a row must then stand in exactly one such answer, after exactly those tokens.
"""

import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from jinja2 import TemplateError

from alignlab.data.tokenise.rows import tokenize
from alignlab.data.tokenise.templates import choose_template, render
from alignlab.data.tokenise.turn_ends import find_turn_ends
from alignlab.errors import InputError
from alignlab.types.layout import find_paths
from alignlab.types.rows import Demonstration, Preference
from tests.data.tokenise.tiny_tokenizers import assistant, byte_tokenizer, token_settings, user

TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "d",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "string", "description": "e"}},
            "required": ["x"],
        },
    },
}


def call(value, reasoning=None):
    function = {"name": "f", "arguments": {"x": value}}
    fields = {"tool_calls": [{"id": "call00001", "type": "function", "function": function}]}
    return assistant("", **fields, **({"reasoning_content": reasoning} if reasoning else {}))


def result(value):
    return {"role": "tool", "name": "f", "tool_call_id": "call00001", "content": value}


def thinks(reasoning, content):
    return assistant(content, reasoning_content=reasoning)


DIALOGUES = {
    "one turn": ((user("Q0"), assistant("A0")), None),
    "turns": ((user("Q0"), assistant("A0"), user("Q1"), assistant("A1"), user("Q2"), assistant("A2")), None),
    "thought": ((user("Q0"), thinks("T0", "A0")), None),
    "thoughts": ((user("Q0"), thinks("T0", "A0"), user("Q1"), thinks("T1", "A1")), None),
    "tools": ((user("Q0"), call("V0"), result("R0"), assistant("A0")), (TOOL,)),
    "thought and tools": (
        (user("Q0"), call("V0", "T0"), result("R0"), thinks("T1", "A0"), user("Q1"), thinks("T2", "A1")),
        (TOOL,),
    ),
}


ROLES = "<|system|><|user|><|assistant|><|tool|><|observation|>"


def tokenizer_of(template, eos="<EOS>"):
    """A tokenizer in which every marker of a template is one token; ordinary are those of reasoning and calls."""
    markers = {*re.findall(r"</?[|｜]?[\w\"▁/]{1,40}[|｜]?>|<[|｜][^<>{}]{1,40}[|｜]>", template + ROLES)} - {eos}
    ordinary = {
        marker for marker in markers if re.fullmatch(r"</?\w+>", marker) and not re.search("turn|utt|/s", marker)
    }
    tokenizer = byte_tokenizer(template=template, eos=eos, bos="<BOS>", markers=())
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(markers - ordinary)})
    tokenizer.add_tokens(sorted(ordinary), special_tokens=False)
    return tokenizer


def targets(row):
    """Every target of a row with the tokens before it on its path; each may occur once."""
    found = Counter()
    for path in find_paths(row.groups, row.branches):
        before = [token for start, end in path.context for token in row.tokens[start:end]]
        for position in range(path.start, path.start + path.length):
            if row.supervised[position]:
                found[(tuple(before), row.tokens[position])] += 1
            before.append(row.tokens[position])
    return found


def by_itself(messages, tools, tokenizer):
    """The same from each turn rendered by itself; None where the turn does not continue the opening of an answer."""
    template, expected = choose_template(tokenizer, "auto"), Counter()
    ends = find_turn_ends(tokenizer, template)
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        context = render(template, tokenizer, messages[:number], tools, add_generation_prompt=True)
        through = render(template, tokenizer, messages[: number + 1], tools)
        if not through.startswith(context):
            return None
        given = tokenizer.encode(context, add_special_tokens=False)
        tokens = tokenizer.encode(through, add_special_tokens=False)
        last = max((i for i, token in enumerate(tokens) if token in ends.stop), default=-1)
        if last < len(given):  # GLM: the token that begins the next message ends this one.
            next_role = "<|observation|>" if message.get("tool_calls") else "<|user|>"
            tokens.append(tokenizer.convert_tokens_to_ids(next_role))
            last = len(tokens) - 1
        elif tokenizer.decode(tokens[last - 2 : last]).endswith("<|end|>\n"):
            last -= 2  # Phi-3 ends the whole dialogue, not the turn, in EOS.
        for position in range(len(given), last + 1):
            expected[(tuple(tokens[:position]), tokens[position])] += 1
    return expected


def row_of(messages, tools=None):
    return Demonstration(origin="d:1", messages=tuple(messages), tools=tools)


# --- the peer's templates ---------------------------------------------------------------------------------------------

PEER = Path(find_spec("trl").submodule_search_locations[0]) / "chat_templates" if find_spec("trl") else None
TEMPLATES = sorted(PEER.glob("*.jinja")) if PEER else []


@pytest.mark.skipif(not TEMPLATES, reason="needs trl for its chat templates")
@pytest.mark.parametrize("kind", DIALOGUES)
@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem)
def test_templates_of_the_peer(file, kind):
    text = file.read_text()
    tokenizer = tokenizer_of(re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", text))
    messages, tools = DIALOGUES[kind]
    try:
        row = tokenize(row_of(messages, tools), tokenizer, token_settings())
    except InputError as error:
        assert is_true(error, messages, tools, tokenizer), error
        return
    expected = by_itself(messages, tools, tokenizer)
    if expected is None:
        assert file.stem.removesuffix("_training").startswith(("deepseek", "nemotron", "gptoss")), "no new kind"
    else:
        assert targets(row) == expected


def is_true(error, messages, tools, tokenizer):
    """Whether a refusal names something that lies in the template."""
    template = choose_template(tokenizer, "auto")
    if "the template refuses the dialogue" in error.why:
        with pytest.raises(TemplateError):
            render(template, tokenizer, messages, tools)
        return True
    written = ""
    for number in range(len(messages)):
        written += render(template, tokenizer, messages[: number + 1], tools)
    lost = {"reasoning": "T0|T1|T2", "a call": "V0", "the tool 'f'": r"\bf\b.*\bd\b.*\bx\b"}
    for what, pattern in lost.items():
        if f"leaves out {what}" in error.why or f"leaves out the {what}" in error.why:
            found = set(re.findall(pattern, written))
            return found < set(re.findall(pattern, str(messages))) or not found
    return "the generation prompt differs" in error.why and "enable_thinking: true" in error.instead


# --- templates of the same shapes -------------------------------------------------------------------------------------

HEAD = (
    "{%- set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
)
HEAD += "{% endif %}{% endfor %}"
CALLS = "{% for c in m.tool_calls or [] %}{{ '<tool_call>' ~ c.function | tojson ~ '</tool_call>' }}{% endfor %}"
TOOLS = "{%- if tools %}{{ '<|system|>' ~ tools | tojson ~ '<|end|>\n' }}{% endif %}"
OPEN = "{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"

# Qwen3: reasoning stays behind the last message of the user only, and the last answer gets an empty block without any.
QWEN3 = (
    HEAD + TOOLS + "{%- for m in messages %}{%- if m.role == 'assistant' %}{{ '<|assistant|>' }}"
    "{%- if loop.index0 > ns.last and (loop.last or m.reasoning_content) %}"
    "{{ '<think>\n' ~ (m.reasoning_content or '') ~ '\n</think>\n\n' }}{% endif %}"
    "{{- m.content or '' }}" + CALLS + "{{ '<|end|>\n' }}"
    "{%- else %}{{ '<|' ~ m.role ~ '|>' ~ m.content ~ '<|end|>\n' }}{% endif %}{%- endfor %}" + OPEN
)
# gpt-oss: another end token inside than at the end, and reasoning before a call is dropped once an answer follows it.
GPT_OSS = (
    TOOLS + "{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "{%- if m.tool_calls %}{%- if m.thinking and not (messages[loop.index0 + 1:] | selectattr('content') | "
    "selectattr('role', 'equalto', 'assistant') | list) %}{{ '<|assistant|><|analysis|>' ~ m.thinking ~ '<|end|>' }}"
    "{%- endif %}{{ '<|assistant|>' }}" + CALLS + "{{ '<|call|>' }}"
    "{%- else %}{%- if m.thinking and loop.last %}{{ '<|assistant|><|analysis|>' ~ m.thinking ~ '<|end|>' }}{% endif %}"
    "{{- '<|assistant|><|final|>' ~ m.content ~ ('<|return|>' if loop.last else '<|end|>') }}{% endif %}"
    "{%- else %}{{ '<|' ~ m.role ~ '|>' ~ m.content ~ '<|end|>' }}{% endif %}{%- endfor %}" + OPEN
)
# Phi-3: EOS after the whole dialogue, behind the end of the last turn.
PHI3 = (
    "{%- for m in messages %}{{ '<|' ~ m.role ~ '|>\n' ~ m.content ~ '<|end|>\n' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# GLM: no token after an answer.
GLM = (
    HEAD + TOOLS + "{%- for m in messages %}{%- if m.role == 'assistant' %}{{ '<|assistant|>\n<think>' }}"
    "{%- if loop.index0 > ns.last and m.reasoning_content %}{{ m.reasoning_content }}{% endif %}{{ '</think>\n' }}"
    "{{- m.content or '' }}" + CALLS + "{%- else %}{{ ('<|observation|>' if m.role == 'tool' else '<|' ~ m.role ~ '|>')"
    " ~ '\n' ~ m.content }}{% endif %}{%- endfor %}" + OPEN
)
# DeepSeek-R1: a thought is always opened, and never written. Arguments are texts, and empty contents None.
R1 = (
    TOOLS + "{%- for m in messages %}{%- if m.role == 'assistant' and m['content'] is none %}{{ '<|assistant|>' }}"
    "{%- for c in m.tool_calls %}{{ '<call>' + c.function.name + ' ' + c.function.arguments + '<|end|>' }}{% endfor %}"
    "{%- elif m.role == 'assistant' %}{{ '<|assistant|>' ~ m.content.split('</think>')[-1] ~ '<|end|>' }}"
    "{%- else %}{{ '<|' ~ m.role ~ '|>' ~ m.content }}{% endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
)
# Nemotron: a thought is opened with a line break, and closed without one where there is none.
NEMOTRON = QWEN3.replace("'<|assistant|>' }}{% endif %}", "'<|assistant|><think>\n' }}{% endif %}").replace(
    "(loop.last or m.reasoning_content) %}{{ '<think>\n' ~ (m.reasoning_content or '') ~ '\n</think>\n\n' }}",
    "m.reasoning_content %}{{ '<think>\n' ~ m.reasoning_content ~ '\n</think>\n' }}{% else %}{{ '<think></think>' }}",
)
# Templates of multimodal models read parts.
PARTS = (
    "{%- for m in messages %}{{ '<|' ~ m.role ~ '|>' }}{% for part in m.content %}{{ part.text }}{% endfor %}"
    "{{- '<|end|>' }}{%- endfor %}" + OPEN
)
SHAPES = {"qwen3": QWEN3, "gpt-oss": GPT_OSS, "phi3": PHI3, "glm": GLM, "r1": R1, "nemotron": NEMOTRON, "parts": PARTS}


def said(row, tokenizer):
    """Each supervised answer with what generation sees before it, in the order of the row."""
    answers = []
    for path in find_paths(row.groups, row.branches):
        before = [token for start, end in path.context for token in row.tokens[start:end]]
        for position in range(path.start, path.start + path.length):
            token = row.tokens[position]
            if row.supervised[position] and answers and answers[-1][0] + answers[-1][1] == before:
                answers[-1][1].append(token)
            elif row.supervised[position]:
                answers.append((list(before), [token]))
            before.append(token)
    return [(tokenizer.decode(before), tokenizer.decode(answer)) for before, answer in answers]


@pytest.mark.parametrize("kind", DIALOGUES)
@pytest.mark.parametrize("shape", SHAPES)
def test_each_turn_is_rendered_as_generation_sees_it(shape, kind):
    tokenizer = tokenizer_of(SHAPES[shape])
    messages, tools = DIALOGUES[kind]
    if shape in ("phi3", "parts") and kind not in ("one turn", "turns"):
        with pytest.raises(InputError, match="leaves out"):
            tokenize(row_of(messages, tools), tokenizer, token_settings())
        return
    row = tokenize(row_of(messages, tools), tokenizer, token_settings())
    expected = by_itself(messages, tools, tokenizer)
    assert sum(targets(row).values()) == sum(row.supervised)
    if expected is not None:
        assert targets(row) == expected
    else:
        assert (shape, kind) in MISFITS, said(row, tokenizer)


MISFITS = {
    *((shape, kind) for shape in ("r1", "nemotron") for kind in DIALOGUES),
    ("gpt-oss", "thought and tools"),
}


def test_a_thought_that_is_opened_is_closed():
    tokenizer = tokenizer_of(R1)
    row = tokenize(row_of(DIALOGUES["thoughts"][0]), tokenizer, token_settings())
    last = ("<|user|>Q0<|assistant|>A0<|end|><|user|>Q1<|assistant|><think>\n", "T1\n</think>\n\nA1<|end|>")
    assert said(row, tokenizer) == [last, ("<|user|>Q0<|assistant|><think>\n", "T0\n</think>\n\nA0<|end|>")]
    row = tokenize(row_of(DIALOGUES["one turn"][0]), tokenizer, token_settings())
    assert said(row, tokenizer) == [("<|user|>Q0<|assistant|><think>\n", "\n</think>\n\nA0<|end|>")]
    written = row_of([user("Q0"), assistant("<think>\nT0\n</think>\n\nA0")])
    row = tokenize(written, tokenizer, token_settings())
    assert said(row, tokenizer) == [("<|user|>Q0<|assistant|><think>\n", "T0\n</think>\n\nA0<|end|>")]


def test_an_empty_thought_continues_the_opening():
    tokenizer = tokenizer_of(NEMOTRON)
    row = tokenize(row_of(DIALOGUES["one turn"][0]), tokenizer, token_settings())
    assert said(row, tokenizer) == [("<|user|>Q0<|end|>\n<|assistant|><think>\n", "</think>A0<|end|>")]


def test_an_answer_after_a_call_sees_the_reasoning_before_the_call():
    tokenizer = tokenizer_of(GPT_OSS)
    row = tokenize(row_of(*DIALOGUES["thought and tools"]), tokenizer, token_settings())
    (_, last), *others = said(row, tokenizer)
    assert last == "<|analysis|>T2<|end|><|assistant|><|final|>A1<|return|>"
    contexts = {answer: context for context, answer in others}
    answer = "<|analysis|>T1<|end|><|assistant|><|final|>A0<|return|>"
    assert contexts[answer].endswith("<|call|><|tool|>R0<|end|><|assistant|>") and "T0<|end|>" in contexts[answer]


def test_a_dialogue_costs_its_tokens_once():
    tokenizer = tokenizer_of(QWEN3)
    messages = [message for turn in range(6) for message in (user(f"question {turn}" * 9), assistant(f"answer {turn}"))]
    row = tokenize(row_of(messages), tokenizer, token_settings())
    template = choose_template(tokenizer, "auto")
    whole = len(tokenizer.encode(render(template, tokenizer, messages)))
    answers = sum(length for _, length in row.branches[0][1:])
    assert len(row.branches[0]) == 6
    assert len(row.tokens) <= whole + answers and answers < 6 * 40


@pytest.mark.parametrize("shape", ["qwen3", "gpt-oss", "glm"])
def test_completions_of_several_turns_share_their_prompt(shape):
    tokenizer = tokenizer_of(SHAPES[shape])
    prompt = (user("Q0"), call("V0", "T0"), result("R0"))
    chosen = (thinks("T1", "A0"), user("Q1"), thinks("T2", "A1"))
    rejected = (assistant("B0"), user("Q1"), assistant("B1"))
    row = Preference(origin="p:1", prompt=prompt, chosen=chosen, rejected=(rejected,), tools=(TOOL,))
    found = tokenize(row, tokenizer, token_settings())
    expected = Counter()
    for turns in (chosen, rejected):
        one = tokenize(row_of((*prompt, *turns), (TOOL,)), tokenizer, token_settings())
        given = tokenize(row_of(prompt[:2], (TOOL,)), tokenizer, token_settings())
        expected += targets(one) - targets(given)
    assert targets(found) == expected
    assert len(found.groups[0]) == 3


@pytest.mark.parametrize("shape", ["qwen3", "gpt-oss", "glm", "r1"])
def test_reasoning_that_is_not_supervised(shape):
    tokenizer = tokenizer_of(SHAPES[shape])
    for kind, answers in (("thoughts", ("A1", "A0")), ("one turn", ("A0",))):
        row = tokenize(row_of(DIALOGUES[kind][0]), tokenizer, token_settings(loss_on_reasoning=False))
        texts = [re.sub(r"<\|\w+\|>|\s", "", answer) for _, answer in said(row, tokenizer)]
        assert texts == list(answers)
        whole = tokenize(row_of(DIALOGUES[kind][0]), tokenizer, token_settings())
        assert not targets(row) - targets(whole) and row.tokens == whole.tokens


def test_all_supervises_the_dialogue_and_the_answers_in_it():
    tokenizer = tokenizer_of(QWEN3)
    row = tokenize(row_of(DIALOGUES["thoughts"][0]), tokenizer, token_settings(loss_on="all"))
    assistant_only = tokenize(row_of(DIALOGUES["thoughts"][0]), tokenizer, token_settings())
    assert not targets(assistant_only) - targets(row)
    first = row.branches[0][0][1]
    assert all(row.supervised[1:first])
