"""Chat templates are programs that come with a model: they render as Transformers renders them, within limits."""

import resource
import time

import pytest
from jinja2 import TemplateError
from transformers.utils import chat_template_utils

from alignlab.data.tokenise.templates import Template, choose_template, render, set_template
from alignlab.errors import InputError
from alignlab.rendering import MAX_TEMPLATE_CHARACTERS, _original
from alignlab.rendering.budget import BASE_CHARACTERS, BUDGET, TooMuch
from tests.commands import QUIET, alignlab
from tests.data.tokenise.tiny_tokenizers import assistant, byte_tokenizer, user

DIALOGUE = [user("Hi there"), assistant("Hello")]
SET = "{%% set ns = namespace(x=%s) %%}{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% endfor %%}{{ ns.x%s }}"
Y = "y" * 100_000

TOO_MUCH = [
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% set x = i|string ~ 'a' %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f(n) %}{{ n }}{{ n }}{% endmacro %}{{ " + "f(" * 60 + "'aaaa'" + ")" * 60 + " }}",
    SET % ("'aaaaaaaaaa'", "ns.x + ns.x", ""),
    SET % ("'aaaaaaaaaa'", "ns.x ~ ns.x", ""),
    SET % ("[1]", "ns.x + ns.x", ""),
    SET % ("[1]", "[ns.x, ns.x]", ""),
    SET % ("[1]", "[ns.x, ns.x]", "|tojson"),
    SET % ("[1]", "{'a': ns.x, 'b': ns.x}", " ~ ''"),
    SET % ("namespace(y='aaaa')", "namespace(y=ns.x.y ~ ns.x.y)", ".y"),
    SET % ("namespace(y=1)", "namespace(y=ns.x, z=ns.x)", ""),
    SET % ("7", "ns.x * ns.x", ""),
    "{{ 'a'*10**10 }}",
    "{{ 10**10*'a' }}",
    "{{ 'a' * 1000 * 1000 * 1000 * 1000 }}",
    "{% for a in (messages|list)*10000000 %}x{% endfor %}",
    "{{ 10000000000000000000000000**1000000 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ '{0}{0}{0}'.format('a'*9999999) }}",
    "{{ ('%s'*9999) % (('a'*9999),)*9999 }}",
    "{{ 'a'.center(10000000000) }}",
    "{{ 'a'.zfill(10000000000) }}",
    "{{ 'a'|center(10000000000) }}",
    "{{ 'a'|indent(10000000000) }}",
    "{{ [1]|tojson(indent=10000000000) }}",
    "{{ (5).to_bytes(10000000000, 'big') }}",
    "{{ ('\t'*99999).expandtabs(999999) }}",
    "{{ 'aaaa'.replace('', 'b'*9999999) }}",
    "{{ 'aaaa'|replace('', 'b'*9999999) }}",
    "{{ ('a'*999999).join(['x']*999999) }}",
    "{{ (['x']*999999)|join('a'*999999) }}",
    "{{ range(99999)|map('string')|join('" + "z" * 10000 + "') }}",
    "{{ 'a'.translate({97: 'b'*9999999, 98: 'c'*9999999}) }}",
    "{{ dict.fromkeys(range(99999), 'a'*99999) }}",
    "{{ dict.fromkeys(range(99999), 'a'*99999)|trim }}",
    "{{ [1,2,3]|batch(10000000000)|list }}",
    "{{ [1]|slice(10000000000)|list }}",
    "{% for i in range(99999) %}" + Y + "{% endfor %}",
    "{% macro f() %}" + Y + "{% endmacro %}{% for i in range(99999) %}{{ f() }}{% endfor %}",
    "{% set q %}{% for i in range(99999) %}" + Y + "{% endfor %}{% endset %}",
    "{% set s = 'a'*999999 %}{% for i in range(99999) %}{% if s[::-1] == s %}{% endif %}{% endfor %}",
    "a" * (MAX_TEMPLATE_CHARACTERS + 1),
]
AT_FAULT = [
    "{{ 1/0 }}",
    "{{ range(10**9) }}",
    "{{ messages[0].content + 1 }}",
    "{{ messages['a'].b.c }}",
    "{{ lipsum(100000) }}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{% if 1 %}" * 500 + "{% endif %}" * 500,
    "{{ 9**9**9**9**9 }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{% for %}",
]
ORDINARY = [
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m['content'] | trim + '\n' }}{% endfor %}",
    "{%- for m in messages if m.role %}{{ loop.index0 }}{{ loop.last }}{{ loop.length }}{{ m.role }}{% endfor %}",
    "{% set ns = namespace(n=0, s='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.s = ns.s ~ m.role %}"
    "{% endfor %}{{ ns.n }}{{ ns.s }}{{ messages[::-1] | tojson(indent=2) }}{{ messages | length }}",
    "{% macro show(m, deep=false) %}{{ m.content.split(' ')[-1].replace('l', 'L') }}{% endmacro %}"
    "{% for m in messages %}{{ show(m) }}{% if loop.first %}{% continue %}{% endif %}{{ m }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}{{ none }}{{ 3 * 4 ** 2 }}",
    "{{ '%s-%05d' % ('a', 3) }}{{ '{}:{:>4}'.format(1, 'b') }}{{ messages | map(attribute='role') | join(', ') }}"
    "{{ range(3) | list }}{{ range(300) | sum }}{{ 'x' * 3 }}{{ [1] * 2 }}"
    "{{ messages | selectattr('role', 'eq', 'user') | list }}",
    "{% for k, v in messages[0].items() %}{{ k ~ '=' ~ v ~ ';' }}{% endfor %}{{ bos_token }}"
    "{{ {'a': [1, 2.5, none]} }}",
    "{% set t %}{% for m in messages %}{{ m.content | upper }}{% endfor %}{% endset %}{{ t | indent(2) }}"
    "{{ t is string }}",
    "{% for i in range(400) %}{{ loop.index if loop.last }}{{ loop.revindex if loop.first }}{% endfor %}",
    "{% filter upper %}{{ messages[0].content }}{% endfilter %}",
]  # fmt: skip


def rendered(text):
    tokenizer = byte_tokenizer()
    return render(Template("mine", text), tokenizer, DIALOGUE)


@pytest.mark.parametrize("text", TOO_MUCH, ids=lambda text: text[:50])
def test_what_takes_too_much_is_refused_in_time_and_within_memory(text):
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    with pytest.raises(InputError, match="takes too much"):
        rendered(text)
    assert time.thread_time() - began < 6
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024


@pytest.mark.parametrize("text", AT_FAULT, ids=lambda text: text[:50])
def test_a_template_at_fault_is_an_error_of_the_template(text):
    with pytest.raises(TemplateError):
        rendered(text)


@pytest.mark.parametrize("text", ORDINARY, ids=lambda text: text[:50])
def test_the_text_is_the_one_of_transformers(text, monkeypatch):
    ours = rendered(text)
    monkeypatch.setattr(chat_template_utils, "_compile_jinja_template", _original)
    assert ours == rendered(text) and ours


def test_a_long_dialogue_has_a_larger_budget():
    """Twice as much text as the base allows, gone through several times."""
    long = [user("a" * (BASE_CHARACTERS // 10))] * 20
    text = "{% for m in messages %}{% set c = m.content | trim %}{{ '<' + c + '>' }}{% endfor %}"
    assert len(render(Template("mine", text), byte_tokenizer(), long)) == 20 * (BASE_CHARACTERS // 10 + 2)


def test_outside_of_a_rendering_nothing_is_counted():
    BUDGET.begin(None)
    BUDGET.left = 0
    with pytest.raises(TooMuch):
        BUDGET.spend(1)
    assert rendered("{{ messages[0].content }}") == "Hi there"


def test_apply_chat_template_has_the_same_limits():
    tokenizer = byte_tokenizer(template=TOO_MUCH[0])
    with pytest.raises(TooMuch):
        tokenizer.apply_chat_template(DIALOGUE, tokenize=False)


def test_a_hanging_template_is_refused_before_any_row_is_read():
    with pytest.raises(InputError, match=r"data.chat_template=auto: rendering a dialogue of 2 messages .* too much"):
        set_template(byte_tokenizer(template=TOO_MUCH[0]), "auto")


@pytest.mark.parametrize(("content", "why"), [(b"\xff\xfe\x00\x80", "cannot be read as text"), (b"a" * 2**21, "bytes")])
def test_files_that_are_no_template_are_refused(content, why, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_bytes(content)
    with pytest.raises(InputError, match=why):
        choose_template(byte_tokenizer(), str(file))


LATE = (
    "{% if messages|length > 2 or messages[0].content != '0' %}" + TOO_MUCH[0] + "{% endif %}{{ messages[-1].content }}"
)


@pytest.mark.parametrize("words", [[], ["data.tokenize_workers=2", "data.source.num_train=3000"]])
def test_a_template_that_hangs_on_the_rows_is_exit_code_2(words, tmp_path, capsys):
    """In this process and in forked workers."""
    (tmp_path / "late.jinja").write_text(LATE)
    words = [*QUIET, f"run_dir={tmp_path / 'run'}", f"data.chat_template={tmp_path / 'late.jinja'}", *words]
    assert alignlab("train", *words, f"data.cache_dir={tmp_path / 'cache'}") == 2
    assert "takes too much" in capsys.readouterr().err
