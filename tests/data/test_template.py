"""Chat templates are programs of strangers: what they may do, and how soon they are stopped."""

import subprocess
import time
from pathlib import Path

import pytest

from data.text.template import CPU_SECONDS, Template
from system import InputError
from tests.proofs import counted

HEAD = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
GENTLE = HEAD + "{% if add_generation_prompt %}assistant:{% endif %}"
USER = [{"role": "user", "content": "q"}]


def template(source, **names):
    return Template(source, Path("chat_template.jinja"), names)


def test_a_plain_template_is_rendered():
    assert template(GENTLE).render(USER, add_generation_prompt=True) == "user: q\nassistant:"


def test_a_template_is_tried_out_once_and_another_one_again(monkeypatch):
    tried = counted(monkeypatch, subprocess, "run")
    for source in (GENTLE + "{# once #}", GENTLE + "{# once #}", GENTLE + "{# twice #}"):
        template(source)
    assert len(tried) == 2
    template(GENTLE + "{# once #}", bos_token="<s>")  # what it is given is part of what is tried
    assert len(tried) == 3


HOSTILE = {  # each stopped the interpreter, or filled the machine, in an unlimited process
    "endless loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a huge power": "{{ 9 ** (10 ** 7) }}",
    "a huge text": "{{ 'x' * 10 ** 9 }}",
    "a wide format": "{{ '%1000000000d' % 1 }}",
    "a text that doubles": "{% set s = namespace(x='xx') %}{% for i in range(40) %}{% set s.x = s.x * 2 %}{% endfor %}",
    "a long text": "{{ 'x' * (3 * 10 ** 6) }}" + GENTLE,
    "only in a second turn": "{% if messages | length > 2 %}{{ 9 ** (10 ** 7) }}{% endif %}" + GENTLE,
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_a_template_that_takes_too_much_is_stopped_and_named(source):
    start = time.monotonic()
    with pytest.raises(
        InputError, match=r"^chat_template\.jinja: .*(takes more than|it makes [\d,]+ characters|4300 digits)"
    ):
        template(source)
    assert time.monotonic() - start < 6 * CPU_SECONDS  # it would run for minutes, or for ever


REACHING = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "by attribute filter": "{{ ''|attr('__class__') }}",
    "by format": "{{ '{0.__class__}'.format('') }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "a loop's helper": "{{ cycler.__init__.__globals__.os.system('touch /tmp/pwned') }}",
    "imports": "{% import 'os' as os %}",
    "files": "{% include '/etc/passwd' %}",
}


@pytest.mark.parametrize("source", REACHING.values(), ids=REACHING)
def test_a_template_that_reaches_for_the_machine_gets_nothing(source):
    try:
        text = template(source + GENTLE).render(USER, add_generation_prompt=True)
    except InputError as fault:
        text = str(fault)
        assert "chat_template.jinja" in text
    assert "<class" not in text and "root:" not in text and not Path("/tmp/pwned").exists()


def test_a_template_cannot_change_what_it_is_given():
    with pytest.raises(InputError, match="it reaches for what a template must not have"):
        template("{{ messages.append(1) }}" + GENTLE)


@pytest.mark.parametrize("source", ["{{ unknown }}", "{{ nothing.x }}"])
def test_an_undefined_name_cannot_be_written(source):
    with pytest.raises(InputError, match="is undefined"):
        template(source + GENTLE).render(USER, add_generation_prompt=False)


def test_a_fault_in_one_conversation_only_is_that_conversations():
    made = template("{% if messages[0].content == 'bad' %}{{ raise_exception('not this one') }}{% endif %}" + GENTLE)
    assert made.render(USER, add_generation_prompt=False)
    with pytest.raises(InputError, match=r"refuses the conversation: not this one"):
        made.render([{"role": "user", "content": "bad"}], add_generation_prompt=False)


@pytest.mark.parametrize("source", ["{{ 1 | dictsort }}", "{{ cycler().next() }}", "{{ '\\ud800' }}"])
def test_whatever_a_template_raises_is_told(source):
    with pytest.raises(InputError, match=r"chat_template\.jinja (fails|refuses)"):
        template(source + GENTLE).render(USER, add_generation_prompt=False)


def test_a_long_text_for_one_row_is_a_fault_of_that_row():
    made = template("{{ 'x' * (2 * 10 ** 6 if messages[0].content == 'q' else 1) }}" + GENTLE)
    with pytest.raises(InputError, match=r"makes 2,000,\d+ characters of the conversation"):
        made.render(USER, add_generation_prompt=False)


def test_content_that_looks_like_a_template_stays_text():
    text = "{{ 1 + 1 }} {% for %} {# #}"
    assert text in template(GENTLE).render([{"role": "user", "content": text}], add_generation_prompt=False)


def test_json_is_written_as_transformers_writes_it():
    made = template("{{ messages | tojson }}")
    assert made.render([{"role": "user", "content": "<é&'>"}], add_generation_prompt=False) == (
        '[{"role": "user", "content": "<é&\'>"}]'
    )


@pytest.mark.parametrize(
    ("source", "roles"),
    [
        (GENTLE, set()),
        ("{% if m.role == 'tool' %}{% endif %}", {"tool"}),
        ("{% if m['role'] in ['ipython', \"tool\"] or m.role != 'user' %}{% endif %}", {"ipython", "tool", "user"}),
        ("{% if m.content == 'tool' %}role{% endif %}", set()),
    ],
)
def test_the_roles_that_a_template_names_are_known(source, roles):
    assert template("{% for m in messages %}" + source + "{% endfor %}").roles() == roles
