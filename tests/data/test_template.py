"""Chat templates are programs of strangers: what they may do, and how soon they are stopped."""

import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from data.text.template import CPU_SECONDS, Template
from engine import weights
from system import InputError, RunError
from tests import tiny
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
    with pytest.raises(InputError, match=r"writes 2,000,\d+ characters for one conversation"):
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


def test_what_the_child_process_lacks_is_told_as_its_own_failure(tmp_path, monkeypatch):
    """And not as the template's, which may be as it should be."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/__init__.py").write_text("raise RuntimeError('a broken installation')")
    monkeypatch.setattr("data.text.template.ROOT", str(tmp_path))
    said = r"^chat_template\.jinja: the child process .* has failed \(RuntimeError: a broken installation\)"
    with pytest.raises(RunError, match=said):
        template(GENTLE + "{# in a broken child #}")


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="this interpreter has its packages without PYTHONPATH")
def test_packages_that_pythonpath_alone_names_are_there_for_the_child_too(tmp_path):
    path = os.pathsep.join((str(tiny.ROOT), sysconfig.get_path("purelib")))
    code = "import sys; from pathlib import Path; from data.text.template import Template"
    done = subprocess.run(
        [sys._base_executable, "-c", f"{code}; print(Template(sys.argv[1], Path('x'), {{}}).source)", GENTLE],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, GENTLE + "\n"), done.stderr


LACKING = """
import os, resource
for name in ("posix_fallocate", "sched_getaffinity"):
    delattr(os, name)
real = resource.setrlimit
def setrlimit(what, limits):
    if what == resource.RLIMIT_AS:
        raise ValueError("current limit exceeds maximum limit")
    return real(what, limits)
resource.setrlimit = setrlimit
"""


@pytest.mark.slow
def test_where_there_is_no_limit_of_memory_and_no_way_to_reserve_a_file_runs_do_without(tmp_path):
    """As on macOS."""
    (tmp_path / "without").mkdir()
    (tmp_path / "without/sitecustomize.py").write_text(LACKING)
    model = tiny.write_model(tmp_path / "m", ["some words"] * 20)
    (model / "chat_template.jinja").write_text(tiny.TEMPLATE)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", [{"prompt": "some", "chosen": "words", "rejected": "some"}] * 2)
    flags = ["--model", model, "--data", rows, "--out", tmp_path / "run", "--epochs", 1, "--batch-size", 2]
    done = subprocess.run(
        [sys.executable, "-m", "engine.train", *map(str, flags)],
        cwd=tmp_path, env=tiny.environment(tmp_path / "without"), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    weights.load(tmp_path / "run/epoch-01")
