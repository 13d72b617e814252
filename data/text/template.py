"""Chat templates: programs from a model folder, run in a sandbox, and first of all in a child that can be killed.

jinja2's sandbox stops a template from reaching the machine, not from running for ever or filling the memory. So a
template is trusted only after a child process with limits of time and memory has rendered probe conversations with it.
What a template does to a row that is unlike every probe is limited in the length of what it writes, not in time.
"""

import contextlib
import datetime
import functools
import json
import os
import re
import resource
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data.text.messages import NO_CONTEXT, TemplateContext
from system import InputError, RunError

CPU_SECONDS = 3
ROOT = str(Path(__file__).resolve().parents[2])  # of the packages
WALL_SECONDS = 60
MEMORY_BYTES = 2**30
LONGEST_OUTPUT = 2**20  # characters; a probe has under 100

PROBES = ("user", "user assistant", "user assistant user", "system user", "system user assistant user")
"""Roles of the conversations that are tried; the first has to work, a template may refuse the others."""

ANOTHER = "--chat-template FILE"
MEND = f"change the row, or use another template: {ANOTHER}"


class Template:
    """A compiled chat template."""

    def __init__(self, source: str, location: Path, names: Mapping[str, str], day: datetime.date | None = None) -> None:
        """names: what the template sees as bos_token, eos_token ... day: the one that strftime_now tells; unset, today.

        Raises InputError where it cannot be compiled, or does not get through the probes within their limits.
        """
        self.source, self.location, self._names = source, location, dict(names)
        today = day or datetime.date.today()
        try:
            said = _probe(source, tuple(sorted(self._names.items())), today.isoformat())
        except RunError as fault:
            raise RunError(f"{location}: {fault}") from None
        if said:  # before it is compiled: that computes constants
            raise InputError(f"{location}: {said}; copy it again from the checkpoint's source")
        environment = _environment(today)
        self._compiled, self._tree = environment.from_string(source), environment.parse(source)
        self.reads = frozenset(n.name for n in self._tree.find_all(jinja2.nodes.Name) if n.ctx == "load")
        """Names that it looks up: its own, and those that it is given."""
        self.day = today if "strftime_now" in self.reads else None
        """The day that it writes; None where it asks for none."""
        self.looked_for = _pattern(_sought(self._tree))
        """What it searches contents for, as a pattern; None where that is nothing but white space."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        context: TemplateContext = NO_CONTEXT,
    ) -> str:
        """The conversation as the template writes it. Raises InputError with the template's words where it refuses."""
        try:
            text = _render(self._compiled, messages, add_generation_prompt, self._names, context)
            text.encode("utf-8")
        except jinja2.TemplateError as fault:
            said = f"the chat template {self.location} refuses the conversation: {fault.message}"
            raise InputError(f"{said}; {MEND}") from None
        except Exception as fault:  # a stranger's program can raise anything
            said = f"the chat template {self.location} fails: {type(fault).__name__}: {fault}"
            raise InputError(f"{said}; {MEND}") from None
        if len(text) > LONGEST_OUTPUT and len(text) > LONGEST_OUTPUT + 10 * _n_letters([messages, *context]):
            raise InputError(
                f"the chat template {self.location} writes {len(text):,} characters for one conversation, above the "
                f"limit; repair it, or use another: {ANOTHER}"
            )
        return text

    def roles(self) -> set[str]:
        """The roles that the template asks for by name: `message.role == "tool"`, `message["role"] in ["tool"]`."""
        named: set[str] = set()
        for compare in self._tree.find_all(jinja2.nodes.Compare):
            if _compares_role(compare):
                named |= {c.value for c in compare.find_all(jinja2.nodes.Const) if isinstance(c.value, str)}
        return named - {"role"}


def _n_letters(value: Any) -> int:
    """How much text there is in what a template is given."""
    if isinstance(value, Mapping):
        return sum(_n_letters(item) for pair in value.items() for item in pair)
    return sum(map(_n_letters, value)) if isinstance(value, (list, tuple)) else len(str(value))


def _sought(tree: jinja2.nodes.Template) -> set[str]:
    """Texts that a template compares something with, cuts something at or replaces, or keeps under a name.

    Names of roles and of fields are left out: they are not looked for in what messages say.
    """
    found = {text for compare in tree.find_all(jinja2.nodes.Compare) for text in _compared(compare)}
    for call in tree.find_all((jinja2.nodes.Call, jinja2.nodes.Filter, jinja2.nodes.Test)):
        found |= {a.value for a in call.args if isinstance(a, jinja2.nodes.Const) and isinstance(a.value, str)}
    for kept in tree.find_all(jinja2.nodes.Assign):
        if isinstance(kept.node, jinja2.nodes.Const) and isinstance(kept.node.value, str):
            found.add(kept.node.value)
    return {text for text in found if text.strip()}


def _compared(compare: jinja2.nodes.Compare) -> Iterator[str]:
    if _compares_role(compare):
        return
    sides = [compare.expr, *(operand.expr for operand in compare.ops)]
    fields = [_field(side) for side in sides]
    of_field = any(name not in (None, "content", "reasoning_content") for name in fields)
    is_key = of_field or any(operand.op in ("in", "notin") for operand in compare.ops)
    for side in sides:
        for const in [side] if isinstance(side, jinja2.nodes.Const) else side.find_all(jinja2.nodes.Const):
            if isinstance(const.value, str) and not (is_key and re.fullmatch("[A-Za-z_]+", const.value)):
                yield const.value


def _field(node: jinja2.nodes.Node) -> str | None:
    """The field that an expression takes of something; None where it does not."""
    if isinstance(node, jinja2.nodes.Getattr):
        return node.attr
    if isinstance(node, jinja2.nodes.Getitem) and isinstance(node.arg, jinja2.nodes.Const):
        return str(node.arg.value)
    return None


def _pattern(texts: set[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(re.escape, sorted(texts, key=lambda t: (-len(t), t))))) if texts else None


def _compares_role(compare: jinja2.nodes.Compare) -> bool:
    return _is_role(compare.expr) or any(_is_role(operand.expr) for operand in compare.ops)


def _is_role(node: jinja2.nodes.Node) -> bool:
    return _field(node) == "role" or (isinstance(node, jinja2.nodes.Name) and node.name == "role")


def _environment(day: datetime.date) -> ImmutableSandboxedEnvironment:
    """What transformers gives a template; its clock stands still at the beginning of a day."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=_Unprintable,
        extensions=["jinja2.ext.loopcontrols", _Generation],
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = datetime.datetime.combine(day, datetime.time()).strftime
    environment.filters["tojson"] = _tojson
    return environment


def _render(
    template: jinja2.Template,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool,
    names: dict[str, str],
    context: TemplateContext = NO_CONTEXT,
) -> str:
    return template.render(
        names
        | dict(context.kwargs)
        | {
            "messages": [dict(m) for m in messages],
            "add_generation_prompt": add_generation_prompt,
            "tools": context.tools,
            "documents": context.documents,
        }
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
def _probe(source: str, names: tuple[tuple[str, str], ...], day: str) -> str | None:
    """What is wrong with a template, found out in a child process; None where it can be trusted."""
    child = [sys.executable, "-P", "-c", "from data.text.template import answer_probe; answer_probe()"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))}
    try:
        done = subprocess.run(
            child,
            input=json.dumps({"source": source, "names": dict(names), "day": day}),
            capture_output=True,
            text=True,
            env=env,
            timeout=WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:  # a template's work ends earlier, by the limit that the child has
        raise RunError(
            f"trying this chat template in a child process took longer than {WALL_SECONDS} s, since this machine is "
            "busy; try again"
        ) from None
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"rendering a conversation of two words takes more than {CPU_SECONDS} seconds of work"
    if done.returncode:  # what a template does is told on stdout
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RunError(f"the child process that tries this chat template has failed ({last})")
    return done.stdout.strip() or None


def answer_probe() -> None:
    """The child: reads a template from stdin, renders the probes under limits, prints what is wrong in one line."""
    asked = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    with contextlib.suppress(ValueError, OSError):  # macOS knows no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        template = _environment(datetime.date.fromisoformat(asked["day"])).from_string(asked["source"])
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
