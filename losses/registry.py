"""What an objective is, and where it is found: `@loss` puts a pure function under a name, `get` gives it back.

An objective takes columns of sequences (`Responses`), or, at token level, of their tokens (`TokenResponses`), and gives
per-example losses and rewards (`Result`). It knows nothing of models, batches, ranks or configuration. Everything the
engine has to know about it is read off its decorator and its signature: which rows it eats, whether it needs a
reference, its hyperparameters and their defaults.
"""

import difflib
import hashlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from losses.errors import LossError
from losses.token_responses import NEED_REFERENCE, TOKEN_NEEDS, log_ratios

Form = Literal["pairs", "unpaired", "single", "ranked"]
Level = Literal["sequence", "token"]

COLUMNS: dict[str, tuple[str, ...]] = {  # the positional arguments that each form of data stands for
    "pairs": ("chosen", "rejected"),
    "unpaired": ("responses", "labels"),
    "single": ("responses",),
    "ranked": ("responses",),
}
NEEDS = frozenset({"lengths", "scores", "own_scores", "probs", "mismatched", "values", "weights"}) | TOKEN_NEEDS
# Keyword arguments that the engine fills from rows and the step. They are no hyperparameters.
INJECTED = frozenset(
    {"mismatched", "own_scores", "probs_w", "probs_l", "values", "weights", "state", "mean_length", "progress"}
)
# Tensors that a caller from Python can give, and the engine never does: no hyperparameters either.
FROM_PYTHON = frozenset({"target", "keep"})


class Responses(NamedTuple):
    """One column of sequences; every tensor is [n] ([n, K], best first, in the form "ranked")."""

    logps: Tensor
    """Log-prob of the response under the policy, summed over its tokens; nats, float32 or float64, with gradient."""
    ref_logps: Tensor | None = None
    """The same under the reference, without gradient; None for objectives that need no reference."""
    lengths: Tensor | None = None
    """Tokens in these sums (the end-of-turn token too where it is in the sum), int64, at least 1."""
    scores: Tensor | None = None
    """The row's rating of this response, float."""

    @property
    def logratios(self) -> Tensor:
        """logps - ref_logps [n], nats. Raises LossError where there is no reference."""
        return log_ratios(self.logps, self.ref_logps)


class Result(NamedTuple):
    """What an objective gives back: per-example losses, and detached rewards for the log."""

    losses: Tensor
    """[n], one per example, not reduced."""
    chosen_rewards: Tensor
    """Detached rewards of chosen responses; unpaired: of those labelled True only."""
    rejected_rewards: Tensor
    """Detached rewards of rejected responses; unpaired: of those labelled False only."""
    metrics: Mapping[str, Tensor] = types.MappingProxyType({})
    """Detached extras for the log, scalars: kl, delta, beta ..."""
    state: dict[str, float] | None = None
    """What the next step's call gets back as `state`, for objectives that carry something from step to step."""


@dataclass(frozen=True)
class Loss:
    """An objective as the engine sees it. Calling it calls the function, with exactly the same arguments."""

    function: Callable[..., Result]
    name: str
    data: Form
    level: Level
    """What its columns are: "sequence", sums over responses (`Responses`), or "token" (`TokenResponses`)."""
    reference: bool
    needs: frozenset[str]
    whole_step: bool
    """The function must see the whole optimizer step over all ranks at once (it takes a statistic of the step)."""
    state: bool
    """The function carries something from step to step: it is given what it returned, as `state`."""
    side: Literal["chosen", "rejected"]
    """Which response of a pair it takes, where its form is "single"."""
    defaults: Mapping[str, Any]
    """Hyperparameters and their defaults, from the signature."""
    types: Mapping[str, Any]
    """Their annotations, for reading them from text."""
    injected: frozenset[str]
    """Keyword arguments that the engine fills from rows and the step (a subset of INJECTED)."""
    fields: tuple[str, ...]
    """Keyword arguments that it fills with the number that each row has under that name."""
    formula: str
    """Said where the name stood for another formula in an earlier version: a run that began with that one does not go
    on with this."""
    digest: str
    """SHA-256 of the file outside the packages that it was taken from; empty for those of the package."""

    def __call__(self, *columns: Any, **arguments: Any) -> Result:
        return self.function(*columns, **arguments)

    @property
    def weighs_rows(self) -> bool:
        """Whether it is given the rows' weights, and says itself what they do; other losses are multiplied by them."""
        return "weights" in self.injected or "weight" in self.fields

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]


_losses: dict[str, Loss] = {}
_aliases: dict[str, str] = {}
_files: dict[Path, tuple[str, frozenset[str]]] = {}
"""Of each file that was imported its digest, and the names and aliases that it brought."""
_importing = [""]
"""The digest of the file that is being imported, last."""


def loss(
    name: str,
    *,
    data: Form,
    level: Level = "sequence",
    reference: bool = False,
    needs: tuple[str, ...] = (),
    fields: tuple[str, ...] = (),
    whole_step: bool = False,
    state: bool = False,
    side: Literal["chosen", "rejected"] = "chosen",
    aliases: tuple[str, ...] = (),
    formula: str = "",
) -> Callable[[Callable[..., Result]], Loss]:
    """Registers the decorated function as the objective `name`; what stands under the name is a `Loss`.

    data: which rows it takes, hence its positional arguments (COLUMNS). level: whether
    these are sums over responses or their tokens (`Loss.level`). reference: whether `ref_logps` must be there.
    needs: further things a row or the step must supply (NEEDS). fields: numbers of each row by their names there; the
    keyword arguments of these names, which need no default, are tensors [n], float64. whole_step, state, side: see
    `Loss`; what carries a state takes the whole step. aliases: peers' names. formula: `Loss.formula`.
    Raises LossError, when the file is imported, for a name that is taken, an unknown form or need, positional
    arguments that do not fit the form, a hyperparameter that is positional or has no default, and a field that is no
    keyword argument. The name of an objective that was typed into a notebook or a REPL is free for typing it anew: what
    a cell says that is run again holds.
    """

    def register(function: Callable[..., Result]) -> Loss:
        where = f"objective {name!r}"
        before = _losses.get(name)
        anew = before is not None and _is_typed_anew(function, before.function)
        replaced = frozenset(x for x in (name, *_aliases) if anew and _aliases.get(x, x) == name)
        for taken in (name, *aliases):
            if taken not in replaced and (taken in _losses or taken in _aliases):
                raise LossError(f"{where}: the name {taken!r} is taken; choose another")
        _check_needs(where, data, level, needs, reference=reference)
        keywords, read_as = _read_signature(where, function, data, needs, fields)
        made = Loss(
            function=function,
            name=name,
            data=data,
            level=level,
            reference=reference,
            needs=frozenset(needs),
            whole_step=whole_step or state,
            state=state,
            side=side,
            defaults=types.MappingProxyType({name: keywords[name].default for name in read_as}),
            types=types.MappingProxyType(read_as),
            injected=INJECTED & keywords.keys(),
            fields=fields,
            formula=formula,
            digest=_importing[-1],
        )
        _forget(replaced)
        _losses[name] = made
        _aliases.update(dict.fromkeys(aliases, name))
        return made

    return register


def _check_needs(where: str, data: Form, level: Level, needs: tuple[str, ...], *, reference: bool) -> None:
    """Raises LossError for a form, a level or a need that is not there, and for those that do not go together."""
    if data not in COLUMNS:
        raise LossError(f"{where}: data={data!r} is not one of {', '.join(COLUMNS)}")
    if level not in ("sequence", "token"):
        raise LossError(f"{where}: level={level!r} is not sequence or token")
    if isinstance(needs, str):
        raise LossError(f"{where}: needs={needs!r} is one text; write needs=({needs!r},)")
    if unknown := set(needs) - NEEDS:
        raise LossError(f"{where}: needs={sorted(unknown)} is not among {', '.join(sorted(NEEDS))}")
    if level == "token" and data == "ranked":
        raise LossError(f"{where}: level='token' takes pairs, unpaired or single data, and not ranked")
    if level == "sequence" and (tokens := set(needs) & TOKEN_NEEDS):
        raise LossError(f"{where}: needs={sorted(tokens)} applies to single tokens; say level='token'")
    if not reference and (of_reference := set(needs) & NEED_REFERENCE):
        raise LossError(f"{where}: needs={sorted(of_reference)} needs a reference; say reference=True")
    if "revised" in needs and data != "pairs":
        raise LossError(f"{where}: needs=('revised',) compares two responses; say data='pairs'")


def _read_signature(
    where: str, function: Callable[..., Result], data: Form, needs: tuple[str, ...], fields: tuple[str, ...]
) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    """A function's keyword arguments, and the types of those that are hyperparameters. Raises LossError."""
    parameters = inspect.signature(function).parameters.values()
    positional = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
    if positional != COLUMNS[data]:
        raise LossError(
            f"{where}: data={data!r} gives the positional arguments ({', '.join(COLUMNS[data])}), the function "
            f"takes ({', '.join(positional)}); make hyperparameters keyword-only, after a *"
        )
    keywords = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    _check_fields(where, fields, set(keywords))
    for name, p in keywords.items():
        if p.default is p.empty and name not in fields:
            raise LossError(
                f"{where}: the argument {name!r} has no default; give it one, or, where each row has such a "
                f"number, say fields=({name!r},)"
            )
    if "mismatched" in needs and not {"mismatched", "kl"} <= keywords.keys():
        raise LossError(f"{where}: needs=('mismatched',) needs the arguments 'mismatched' and 'kl'; add them")
    filled = INJECTED | FROM_PYTHON | frozenset(fields)
    hints = typing.get_type_hints(function)
    read_as = {name: hints.get(name, type(p.default)) for name, p in keywords.items() if name not in filled}
    for argument, kind in read_as.items():
        if not _is_readable(kind):
            raise LossError(
                f"{where}: the argument {argument!r} cannot be read from text; annotate it as bool, int, float, "
                "str, a Literal of text, or one of these or None, or, where each row has such a number, "
                f"say fields=({argument!r},)"
            )
    return keywords, read_as


def get(name: str) -> Loss:
    """The objective of that name or alias; "path/to/file.py:name" takes it from a file outside the packages.

    Raises LossError for a name that is not there (naming the nearest) and for a file that cannot be imported.
    """
    path, colon, inner = name.rpartition(":")
    if name.endswith(".py"):
        brought = ", ".join(f"{name}:{x}" for x in sorted(_import_file(Path(name)))) or "none"
        raise LossError(f"{name}: say which objective of the file; it defines {brought}")
    if colon and path.endswith(".py"):
        if inner not in _import_file(Path(path)):
            raise LossError(f"{path} defines no objective {inner!r}; decorate it with @loss({inner!r}, data=...)")
        return _losses[_aliases.get(inner, inner)]
    if name == "aot_pair":
        raise LossError(
            "aot_pair is ambiguous: until February 2026 it was TRL's name of aot_unpaired; use that, or aot for pairs"
        )
    name = _aliases.get(name, name)
    if name not in _losses:
        near = difflib.get_close_matches(name, [*_losses, *_aliases], n=1)
        hint = f"; perhaps {near[0]!r}" if near else ""
        raise LossError(f"there is no objective {name!r}{hint}; the names are {', '.join(names())}")
    return _losses[name]


def names() -> list[str]:
    """The names of all registered objectives, sorted, without aliases."""
    return sorted(_losses)


def aliases() -> list[str]:
    """Peers' names of registered objectives, sorted."""
    return sorted(_aliases)


def _check_fields(where: str, fields: tuple[str, ...], keywords: set[str]) -> None:
    """Raises LossError for fields that the function does not take, and for names that mean something else."""
    if isinstance(fields, str):
        raise LossError(f"{where}: fields={fields!r} is one text; write fields=({fields!r},)")
    for name in fields:
        if name in INJECTED | FROM_PYTHON | NEEDS:
            raise LossError(
                f"{where}: fields={name!r} is a reserved name; choose another, and add --columns ANOTHER={name}"
            )
        if name not in keywords:
            raise LossError(f"{where}: fields={name!r} is not a keyword argument of the function; add it after a *")


def _is_typed_anew(function: Callable[..., Result], before: Callable[..., Result]) -> bool:
    """Whether a definition stands for an earlier one: both of `__main__`, as a notebook's cells and a REPL's lines are.

    Two of one name in one script file contradict one another; where the script is run again (%run), they do not.
    """
    if {getattr(f, "__module__", None) for f in (function, before)} != {"__main__"}:
        return False
    new, old = getattr(function, "__code__", None), getattr(before, "__code__", None)
    if new is None or old is None or new.co_filename != old.co_filename or not Path(new.co_filename).is_file():
        return True
    is_same_run = getattr(function, "__globals__", None) is getattr(before, "__globals__", None)
    return not is_same_run or new.co_firstlineno == old.co_firstlineno


def _is_readable(annotation: Any) -> bool:
    """Whether a hyperparameter of that type can be given as text."""
    options = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal:
        return all(isinstance(option, str) for option in options)
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        rest = [option for option in options if option is not type(None)]
        return len(rest) == 1 and len(options) == 2 and _is_readable(rest[0])
    return annotation in (bool, int, float, str)


def _import_file(path: Path) -> frozenset[str]:
    """Runs a user's file, so that its decorators register; the names and aliases that it brought.

    Once for each content: a file that was changed since brings its names anew, one that fails none. What it imports is
    not read again.
    """
    resolved = path.resolve()
    if not resolved.is_file():
        raise LossError(f"{path}: no such file; --loss takes a name or path/to/file.py:name")
    content = resolved.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    known, names = _files.get(resolved, ("", frozenset[str]()))
    if known == digest:
        return names
    _forget(names)
    _files.pop(resolved, None)
    module = types.ModuleType(f"losses_from_{resolved.stem}_{digest[:8]}")
    module.__file__ = str(resolved)
    before, files = {*_losses, *_aliases}, dict(_files)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    _importing.append(digest)
    try:
        exec(compile(content, resolved, "exec"), module.__dict__)
    except BaseException as fault:
        del sys.modules[module.__name__]
        _forget(_new(before, files))
        if isinstance(fault, LossError):
            raise LossError(f"{path}: {fault}") from None
        if isinstance(fault, SyntaxError):
            raise LossError(f"{path}:{fault.lineno}: {fault.msg}; fix the file") from None
        if isinstance(fault, Exception):  # whatever a user's file raises is the user's to mend
            raise LossError(f"{path}: cannot be imported ({type(fault).__name__}: {fault}); fix the file") from fault
        raise
    finally:
        _importing.pop()
    _files[resolved] = digest, _new(before, files)
    return _files[resolved][1]


def _new(before: set[str], files: dict[Path, tuple[str, frozenset[str]]]) -> frozenset[str]:
    """Names that have come since, but for those of other files that were asked for meanwhile."""
    others = [names for path, (digest, names) in _files.items() if files.get(path) != (digest, names)]
    return frozenset({*_losses, *_aliases} - before).difference(*others)


def _forget(names: frozenset[str]) -> None:
    for name in names:
        _losses.pop(name, None)
        _aliases.pop(name, None)
