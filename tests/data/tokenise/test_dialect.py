"""The forms that a template reads are found from its text and by rendering with it."""

import pytest

from alignlab.data.tokenise.dialect import find_dialect
from alignlab.rendering import compile_template

# As Qwen3: asks whether there is reasoning, and looks into the content of a turn that only calls tools.
QWEN3 = """{%- for message in messages %}
{{- message.role }}: {% if message.reasoning_content is defined and message.reasoning_content is not none %}
{{- message.reasoning_content }}{% elif '</think>' in message.content %}thoughts{% endif %}{{ message.content }}
{%- for call in message.tool_calls or [] %}{{ call.function.name }} {{ call.function.arguments | tojson }}{% endfor %}
{%- endfor %}"""
# As DeepSeek-V3: a turn that only calls tools has no content at all, and its arguments are JSON text.
DEEPSEEK = """{%- for message in messages %}{{ message['role'] + ': ' }}
{%- if message['content'] is not none %}{{ message['content'] }}{% endif %}
{%- for call in message['tool_calls'] or [] %}{{ call['function']['name'] + call['function']['arguments'] }}{% endfor %}
{%- endfor %}"""
# It asks the same question of the content, but cannot do without one.
ASKS = QWEN3.replace("message.reasoning_content is not none", "message.content is not none")


@pytest.mark.parametrize(
    ("template", "is_none", "are_text"), [(QWEN3, False, False), (DEEPSEEK, True, True), (ASKS, False, False)]
)
def test_forms_of_a_turn_that_only_calls_tools(template, is_none, are_text):
    dialect = find_dialect(template, lambda messages: compile_template(template).render(messages=messages))
    assert (dialect.empty_is_none, dialect.arguments_are_text) == (is_none, are_text)
    written = dialect.write({"role": "assistant", "content": "", "tool_calls": []})
    assert written["content"] == ""
