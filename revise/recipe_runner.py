"""What the recipes that ask a model share: from prompts to a file of pairs.

    the target model's answers           drawn and stored                 revise/target.py
    the recipe's questions about them    answered and stored              revise/client/
    pairs, or reasons why there is none  read from the store alone        revise/pairs.py

The last step costs nothing: with other bounds or a better parser the same command reads the same answers again.
"""

import contextlib
import datetime
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from revise import pairs
from revise.client import (
    CHARACTERS_PER_TOKEN,
    REVISER,
    Answered,
    ClientConfig,
    Completion,
    Endpoint,
    Estimate,
    Request,
    Role,
    Store,
    Tally,
    answer_all,
    answered,
    endpoints_of,
    estimate,
    is_cut,
    open_store,
    parse_extra,
    read_batch,
    told,
    write_batch,
)
from revise.handing_on import check_worded, handed_on
from revise.pairs import Made, Pair, Rejected
from revise.prompts import Item, Prompts, PromptsConfig, Side
from revise.target import Drawn, Target, TargetConfig
from system import InputError, RunError, Stopped, check_new_file, cli
from system.flags import PathText, check_above_zero


@dataclass(frozen=True, kw_only=True)
class RecipeConfig(TargetConfig, ClientConfig, PromptsConfig):
    """What every recipe that asks a model is told."""

    endpoint: tuple[str, ...] = ()
    """Base URL of the OpenAI-compatible server of --model, such as http://localhost:8000/v1. Several URLs share the
    requests. Needed unless --batch-write or --batch-read is given."""
    model: str = ""
    """Name of the model at --endpoint. It has to be given, also with --batch-write and --batch-read."""
    response_from: Side | None = None
    """Read --prompts as a file of pairs and use this side of each pair as the target model's answer, instead of
    sampling one. For example, rejected with ContextualAI/ultrafeedback_clair_32k:train reuses the answers that CLAIR
    revised. Unset: answers come from "response" in the rows or from the target model."""
    keep_reasoning: bool = False
    """Write the target model's reasoning into each response as reasoning_content, to train a reasoning model. A
    revision gets the reasoning of the answer that it revises."""
    dedupe: bool = True
    """Send identical requests once and reuse the answer. --no-dedupe asks separately for every row."""
    temperature: float = 0.7
    """Sampling temperature of --model. The APO and CLAIR paper uses 0.7."""
    top_p: float = 1.0
    """Nucleus sampling (top-p) for --model: sample among the most likely tokens that together have this probability. 1
    turns it off."""
    max_tokens: int = 4096
    """Maximum number of tokens of an answer of --model. The APO and CLAIR paper uses 4096."""
    empty_system: bool = True
    """Begin requests to --model with an empty system message, as the authors of the paper do."""
    extra: str | None = None
    """JSON object to merge into each request to --model; null removes a field: '{"max_tokens": null,
    "max_completion_tokens": 4096}'."""
    batch_write: PathText | None = None
    """Write the requests for --model to this new file for OpenAI's Batch API instead of sending them, and to further
    ones beside it (-2, -3 ...) where the API's limits ask for several. Requests to --target-endpoint are still sent."""
    batch_read: tuple[PathText, ...] = ()
    """Read the answers of --model from the Batch API's output and error files; nothing is sent to --model."""
    config: PathText | None = None
    """YAML file with settings under the names of the flags. Flags on the command line win over it."""

    def __post_init__(self) -> None:
        for part in (PromptsConfig, ClientConfig, TargetConfig):
            part.__post_init__(self)
        if not 0 <= self.temperature <= 2:
            raise InputError(f"--temperature: {self.temperature} has to be between 0 and 2")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p: {self.top_p} has to be above 0 and at most 1")
        check_above_zero(self, "max_tokens")
        if self.batch_write and self.batch_read:
            raise InputError(
                "--batch-write and --batch-read: give one; read once the answers to what was written are there"
            )
        check_asked(self, by_batch=bool(self.batch_read or self.batch_write))
        parse_extra(self.extra)


def check_asked(config: ClientConfig, *, by_batch: bool = False) -> None:
    """Raises InputError unless it is said who is asked."""
    if not config.endpoint and not by_batch:
        raise InputError("--endpoint is missing; give the server's address, such as http://localhost:8000/v1")
    if not config.model:
        raise InputError("--model is missing; give the model's name at the endpoint")


@dataclass(frozen=True)
class Recipe:
    """How pairs are made of a prompt and the target model's own answers to it."""

    name: str
    config: RecipeConfig
    n_own: int
    """Own answers to each prompt."""
    ask: Callable[[Item, list[str]], list[Request]]
    """What --model is asked about an item and its own answers. Raises Rejected where there is nothing to ask."""
    pair: Callable[[Item, list[str], list[Completion]], Pair]
    """The pair that the answers make. Raises Rejected."""
    settings: dict[str, Any]
    """What the provenance of every row says: wording and bounds."""
    is_worded: bool = True
    """Whether --model is asked in one text that is made of a prompt, in the place of the prompt itself."""
    role: Role = REVISER
    """What --model is."""
    read: Callable[[Completion], object] | None = None
    """Reads one answer where a pair takes several: raises ValueError where it is not in the form asked for."""


OF_THE_TEXT = (
    "unchanged", "half a block of code", "too short", "too long", "alludes to the revision", "own answer truncated",
)  # fmt: skip
"""Reasons that judge what an answer says: however many there are, the model and its server do what they are asked."""


def question(
    messages: list[dict[str, Any]],
    config: RecipeConfig,
    *,
    sample: int = 0,
    occurrence: int = 0,
    beside: Mapping[str, Any] | None = None,
) -> Request:
    """A request to --model. beside: further fields of it."""
    body = {"model": config.model, "messages": messages, "temperature": config.temperature, "top_p": config.top_p}
    body |= beside or {}
    body |= {"max_tokens": config.max_tokens} | parse_extra(config.extra)
    return Request({k: v for k, v in body.items() if v is not None}, sample, occurrence)


def instruction(text: str, config: RecipeConfig, *, occurrence: int) -> Request:
    """A request that is one instruction, as the authors send them."""
    system = [{"role": "system", "content": ""}] if config.empty_system else []
    return question([*system, {"role": "user", "content": text}], config, occurrence=occurrence)


def wording_facts(text: str, name: str) -> dict[str, str]:
    """What provenance says of a wording."""
    return {"template": name, "template_sha256": hashlib.sha256(text.encode()).hexdigest()[:16]}


def make(recipe: Recipe, *, summary: Callable[[], str | None] = lambda: None) -> None:
    """Makes the pairs, writes them, and says what became of the rest. summary: a sentence on all pairs, at the end.

    Raises InputError before anything is sent; RunError where rows are left without an answer, after the rest has been
    written.
    """
    config, out = recipe.config, Path(recipe.config.out)
    ending: RunError | None = None
    pairs.check_out(out, config.prompts, config.store, config.batch_write, config.only_prompts)
    if config.batch_write:
        check_new_file(Path(config.batch_write))
    endpoints, target, prompts = _opened(recipe)
    with open_store(Path(config.store)) as store:
        if config.dry_run:
            print(told(_estimates(recipe, prompts, target, store), config))
            return
        drawn = Drawn()
        try:
            drawn = target.fill(lambda: prompts, store, len(prompts))
        except RunError as fault:
            ending = _kept(fault, store)
        wanted = (request for item in prompts for request in _questions(recipe, item, target.answers(item, store)))
        if config.batch_write:
            print(write_batch(wanted, store, Path(config.batch_write), config.again), file=sys.stderr)
            return
        if ending is not None:  # what there is is written
            pass
        elif config.batch_read:
            answers = [Path(name) for name in config.batch_read]
            print(read_batch(answers, wanted, store, config, recipe.name), file=sys.stderr)
        else:
            ending = _ask(recipe, wanted, store, endpoints, drawn, len(prompts))
        try:
            with store.snapshot():
                count = pairs.write((_made(recipe, item, target, store) for item in prompts), out)
                mend = "" if count.n_pairs else _mend_of_none(recipe, prompts, target, store)
        except RunError as fault:  # a full disk has been met before
            raise ending or fault from None
        pairs.report(count, len(prompts), out, "\n".join(filter(None, (drawn.said, summary()))))
        if n_same := store.n_repeated_ids():
            cli.notify(
                f"{config.store}: {n_same} answers are also those of another request; the server mixes answers up"
            )
    if ending is not None:
        raise ending
    if count.n_open:
        raise RunError(f"{count.n_open} of {len(prompts)} rows lack an answer; the same command asks for it again")
    check_pairs(count, len(prompts), out, mend)


class Foreseen(NamedTuple):
    """What a recipe would take."""

    prompts: Prompts
    stages: list[Estimate]
    """What servers are asked, as --dry-run says it."""
    n_drawn: int
    """Answers of the model that are still to be drawn here."""


def foresee(recipe: Recipe) -> Foreseen:
    """What `make` would send, and the most that it can cost; nothing is sent. Raises InputError as it does."""
    _, target, prompts = _opened(recipe)
    with open_store(Path(recipe.config.store)) as store:
        stages, drawn = _estimates(recipe, prompts, target, store), set[str]()
        if recipe.config.target_model:
            known = store.states()
            drawn = {r.key for r in target.wanted(prompts) if bytes.fromhex(r.key) not in known}
        return Foreseen(prompts, stages, len(drawn))


def _opened(recipe: Recipe) -> tuple[list[Endpoint], Target, Prompts]:
    """What a recipe works with, checked before anything is sent. Raises InputError."""
    config = recipe.config
    endpoints = endpoints_of(config.endpoint, config)
    target = Target(config, config, n=recipe.n_own, seed=config.seed)
    prompts = Prompts(config, dedupe=config.dedupe, response_from=config.response_from)
    for item in prompts:
        if recipe.is_worded:
            check_worded(item.location, item.prompt, item.context)
        else:
            handed_on(item.location, item.context)
    target.check(prompts)
    return endpoints, target, prompts


def check_pairs(count: pairs.Count, n: int, out: Path, mend: str = "") -> None:
    """Raises RunError where no pair was made at all. mend: what to do about it."""
    if not count.n_pairs and n:
        why = f" ({count.reasons.most_common(1)[0][0]})" if count.reasons else ""
        raise RunError(
            f"no pair was made of {n:,} prompts{why}: {pairs.rejected_beside(out)} has the reason for each"
            + (f"; {mend}" if mend else "")
        )


def _mend_of_none(recipe: Recipe, prompts: Prompts, target: Target, store: Store) -> str:
    """What to do where no pair was made at all: answers that came as they were asked for are not asked for anew."""
    for item in prompts:
        own = target.answers(item, store)
        asked = [answered(store, request) for request in _questions(recipe, item, own)]
        if any(a.row is not None and a.row.state in ("unusable", "refused") for a in (*own, *asked)):
            return "--ask-again asks again where answers were unusable"
    return "all answers are there: other bounds read them again, another --model or --store asks for new ones"


def _ask(
    recipe: Recipe, wanted: Iterable[Request], store: Store, endpoints: Sequence[Endpoint], drawn: Drawn, n_prompts: int
) -> RunError | None:
    """Has what is wanted answered. Gives why it ended early, where there may be answers for some pairs all the same: a
    cap, a dead server. Raises Stopped after a signal. drawn: what the target's answers have taken of the caps.
    """
    try:
        config = recipe.config.after(drawn.n_sent)
        asked = answer_all(
            wanted, store, config, endpoints, purpose=recipe.name, role=recipe.role, n_requests=n_prompts
        )
    except RunError as fault:
        return _kept(fault, store)
    print(_spent(drawn, asked, n_prompts), file=sys.stderr)
    return None


def _kept(fault: RunError, store: Store) -> RunError:
    """An early end after which there may be something to write; any other one is raised."""
    is_signal = isinstance(fault, Stopped) and fault.code != 1
    if is_signal or not store.states():
        raise fault
    return fault


def _questions(recipe: Recipe, item: Item, own: list[Answered]) -> list[Request]:
    """What is asked about an item: nothing where its own answers are of no use."""
    texts = [a.completion.text.strip() for a in own if a.completion]
    if len(texts) < len(own):
        return []
    with contextlib.suppress(Rejected):
        return [request._replace(check=_check_of(recipe, item, texts)) for request in recipe.ask(item, texts)]
    return []


def _check_of(recipe: Recipe, item: Item, texts: list[str]) -> Callable[[Completion], str | None]:
    def check(answer: Completion) -> str | None:
        """Why an answer is not in the form that this recipe asks for."""
        try:
            recipe.read(answer) if recipe.read else recipe.pair(item, texts, [answer])
        except ValueError as reason:
            return None if str(reason).partition(":")[0] in OF_THE_TEXT else str(reason)
        return None

    return check


def _made(recipe: Recipe, item: Item, target: Target, store: Store) -> Made:
    own = target.answers(item, store)
    requests = _questions(recipe, item, own)
    accepted, goes_on = recipe.config.accept_finish_reason, recipe.config.go_on
    answers = [answered(store, request, accepted, goes_on=goes_on) for request in requests]
    try:
        pair = _pair(recipe, item, own, answers)
    except Rejected as why:
        pair = why
    provenance: dict[str, Any] = {"recipe": recipe.name, "row": item.number, **item.names}
    provenance |= {"target": [origin(a) for a in own], "answers": [origin(a) for a in answers]}
    texts = {name: [a.text for a in found if a.text] for name, found in (("own", own), ("answers", answers))}
    settings = {"target": target.settings, **_asked_settings(recipe.config), **recipe.settings}
    settings |= {"response_from": recipe.config.response_from} if recipe.config.response_from else {}
    return Made(item, pair, provenance | {"settings": settings}, texts, _thoughts(own, answers))


def _thoughts(own: list[Answered], answers: list[Answered]) -> dict[str, Any]:
    """What stood before the answers, for the row: nothing where there was nothing."""
    asked, of_own = ([a.reasoning for a in found] for found in (answers, own))
    made: dict[str, Any] = {"reasoning": "\n\n".join(filter(None, asked))} if any(asked) else {}
    return made | ({"own_reasoning": of_own} if any(of_own) else {})


def _asked_settings(config: RecipeConfig) -> dict[str, Any]:
    """How --model was asked."""
    named: dict[str, Any] = {"model": config.model, "temperature": config.temperature, "top_p": config.top_p}
    named |= {"max_tokens": config.max_tokens, "empty_system": config.empty_system}
    return named | ({"extra": parse_extra(config.extra)} if config.extra else {})


def _pair(recipe: Recipe, item: Item, own: list[Answered], answers: list[Answered]) -> Pair:
    """Raises Rejected."""
    for what, found in (("own answer ", own), ("", answers)):
        for a in found:
            if a.completion is None:
                raise Rejected(f"{what}{a.fault}", is_open=a.row is None or a.row.state == "failed")
    texts = [a.completion.text.strip() for a in own if a.completion]
    if not answers:
        recipe.ask(item, texts)  # says why nothing was asked
    pair = recipe.pair(item, texts, [a.completion for a in answers if a.completion])
    by_text = {a.completion.text.strip(): a.completion for a in own if a.completion}
    winner = by_text.get(pair.chosen)
    if recipe.config.cut_answers == "keep" and winner and is_cut(winner.finish):
        raise Rejected("own answer truncated")  # nobody should learn to stop there
    return pair._replace(reasoning=_own_thoughts(pair, own)) if recipe.config.keep_reasoning else pair


def _own_thoughts(pair: Pair, own: list[Answered]) -> tuple[str, str]:
    """The own answers' thoughts, for both responses: a revision has those of the answer that was revised."""
    by_text = {a.completion.text.strip(): a.reasoning for a in own if a.completion}
    return by_text.get(pair.chosen, own[0].reasoning), by_text.get(pair.rejected, own[0].reasoning)


def origin(a: Answered) -> dict[str, Any]:
    """Where an answer is from, for provenance: the model as the server reports it, the request's key, usage, when."""
    if a.row is None or a.completion is None:
        return {"from": "row"} if a.completion else {}
    c = a.completion
    made: dict[str, Any] = {"model": c.model, "request": a.row.key, "finish_reason": c.finish}
    made["usage"] = {"prompt_tokens": c.tokens_in, "completion_tokens": c.tokens_out}
    made |= {} if c.is_counted else {"usage_is_estimated": True}
    made |= {"sent_as": dict(a.renamed)} if a.renamed else {}
    made |= {"cut_at": c.cut_at} if c.cut_at else {}
    return made | {"time": datetime.datetime.fromtimestamp(a.row.time, datetime.UTC).isoformat(timespec="seconds")}


# --- what is said --------------------------------------------------------------------------------------------------


def _spent(drawn: Drawn, asked: Tally, n: int) -> str:
    n_sent, n_known = drawn.first.n_sent + asked.n_sent, drawn.first.n_known + asked.n_known
    tallies = (drawn.first, drawn.again, asked)
    n_tokens, dollars = sum(t.n_tokens for t in tallies), sum(t.dollars for t in tallies)
    more = f" and {drawn.again.n_sent:,} more for own answers that were cut" if drawn.again.n_sent else ""
    return (
        f"{n_sent:,} requests were sent ({n_sent / n:.2f} for each prompt){more}, {n_known:,} answers were in the "
        f"store; {n_tokens / 1e6:,.2f} million tokens, ${dollars:,.2f}"
    )


def _estimates(recipe: Recipe, prompts: Prompts, target: Target, store: Store) -> list[Estimate]:
    """What a run would send, and the most that it can cost, in lines."""
    config, known = recipe.config, store.states()
    longest = "x" * (target.most_tokens * CHARACTERS_PER_TOKEN)  # for answers that are still to be drawn

    def foreseen() -> Iterator[Request]:
        for item in prompts:
            own = target.answers(item, store)
            texts = [a.completion.text.strip() if a.completion else f"{longest}{k}" for k, a in enumerate(own)]
            with contextlib.suppress(Rejected):
                yield from recipe.ask(item, texts)

    stages = target.estimates(lambda: prompts, store)
    return [*stages, estimate(recipe.name, foreseen(), known, config)]
