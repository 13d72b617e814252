"""Chat templates: programs from a model folder, run in a sandbox, and first of all in a child that can be killed.

jinja2's sandbox stops a template from reaching the machine, not from running for ever or filling the memory. So a
template is trusted only after a child process with limits of time and memory has rendered probe conversations with it.
What a template does to a row that is unlike every probe is limited in the length of what it writes, not in time.
"""

import functools
import json
import os
import resource
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from system import InputError

CPU_SECONDS = 3
WALL_SECONDS = 60
MEMORY_BYTES = 2**30
LONGEST_OUTPUT = 2**20  # characters; a probe has under 100

PROBES = ("user", "user assistant", "user assistant user", "system user", "system user assistant user")
"""Roles of the conversations that are tried; the first has to work, a template may refuse the others."""


class Template:
    """A compiled chat template."""

    def __init__(self, source: str, location: Path, names: Mapping[str, str]) -> None:
        """names: what the template sees as bos_token, eos_token ...

        Raises InputError where it cannot be compiled, or does not get through the probes within their limits.
        """
        self.source, self.location, self._names = source, location, dict(names)
        if said := _probe(source, tuple(sorted(self._names.items()))):  # before it is compiled: that computes constants
            raise InputError(f"{location}: {said}; copy it anew from the checkpoint's makers")
        self._compiled = _environment().from_string(source)

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """The conversation as the template writes it. Raises InputError with the template's words where it refuses."""
        try:
            text = _render(self._compiled, messages, add_generation_prompt, self._names)
            text.encode("utf-8")
        except jinja2.TemplateError as fault:
            raise InputError(f"the chat template {self.location} refuses the conversation: {fault.message}") from None
        except Exception as fault:  # a stranger's program can raise anything
            raise InputError(f"the chat template {self.location} fails: {type(fault).__name__}: {fault}") from None
        if len(text) > LONGEST_OUTPUT + 10 * sum(len(m["content"]) for m in messages):
            raise InputError(f"the chat template {self.location} makes {len(text):,} characters of the conversation")
        return text

    def roles(self) -> set[str]:
        """The roles that the template asks for by name: `message.role == "tool"`, `message["role"] in ["tool"]`."""
        named: set[str] = set()
        for compare in _environment().parse(self.source).find_all(jinja2.nodes.Compare):
            if _is_role(compare.expr) or any(_is_role(operand.expr) for operand in compare.ops):
                named |= {c.value for c in compare.find_all(jinja2.nodes.Const) if isinstance(c.value, str)}
        return named - {"role"}


def _is_role(node: jinja2.nodes.Node) -> bool:
    if isinstance(node, jinja2.nodes.Getattr):
        return node.attr == "role"
    if isinstance(node, jinja2.nodes.Getitem):
        return isinstance(node.arg, jinja2.nodes.Const) and node.arg.value == "role"
    return isinstance(node, jinja2.nodes.Name) and node.name == "role"


def _environment() -> ImmutableSandboxedEnvironment:
    """What transformers gives a template, less the clock: ids must not depend on the day."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=_Unprintable,
        extensions=["jinja2.ext.loopcontrols", _Generation],
    )
    environment.globals["raise_exception"] = _refuse
    environment.filters["tojson"] = _tojson
    return environment


def _render(
    template: jinja2.Template, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool, names: dict[str, str]
) -> str:
    return template.render(
        messages=[dict(m) for m in messages],
        add_generation_prompt=add_generation_prompt,
        tools=None,
        documents=None,
        **names,
    )


class _Unprintable(jinja2.Undefined):
    """An undefined name: templates may ask whether it is there, but writing it would be a fault that nobody sees."""

    __slots__ = ()
    __str__ = jinja2.Undefined._fail_with_undefined_error  # pyright: ignore[reportAssignmentType]


class _Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}, which transformers knows: marks an answer for masks, writes nothing."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, with transformers' arguments; jinja2's own filter writes it for web pages."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


# --- the child -----------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _probe(source: str, names: tuple[tuple[str, str], ...]) -> str | None:
    """What is wrong with a template, found out in a child process; None where it can be trusted."""
    child = [sys.executable, "-c", "from data.text.template import answer_probe; answer_probe()"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    try:
        done = subprocess.run(
            child,
            input=json.dumps({"source": source, "names": dict(names)}),
            capture_output=True,
            text=True,
            env=env,
            timeout=WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"rendering a conversation of two words takes more than {WALL_SECONDS} seconds"
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"rendering a conversation of two words takes more than {CPU_SECONDS} seconds of work"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return f"rendering a conversation of two words fails ({last})"
    return done.stdout.strip() or None


def answer_probe() -> None:
    """The child: reads a template from stdin, renders the probes under limits, prints what is wrong in one line."""
    asked = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        template = _environment().from_string(asked["source"])
    except MemoryError:
        print(f"not a chat template (compiling it takes more than {MEMORY_BYTES >> 20} MB)")
        return
    except Exception as fault:  # of jinja2, or of a constant that it computes
        print(f"not a chat template ({' '.join(str(fault).split())})")
        return
    for i, roles in enumerate(PROBES):  # of words that a template cannot have been made for
        messages = [{"role": role, "content": secrets.token_hex(8)} for role in roles.split()]
        try:
            text = _render(template, messages, messages[-1]["role"] == "user", asked["names"])
        except MemoryError:
            print(f"rendering a conversation of two words takes more than {MEMORY_BYTES >> 20} MB")
            return
        except Exception as fault:  # whatever a template raises: in the parent it is raised again, with its location
            if i == 0 and isinstance(fault, jinja2.exceptions.SecurityError):
                print(f"it reaches for what a template must not have ({fault})")
                return
            continue
        if len(text) > LONGEST_OUTPUT:
            print(f"it makes {len(text):,} characters of a conversation of two words")
            return
