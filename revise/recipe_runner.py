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
from typing import Any

from revise import pairs
from revise.client import (
    CHARACTERS_PER_TOKEN,
    Answered,
    ClientConfig,
    Completion,
    Endpoint,
    Request,
    Store,
    Tally,
    answer_all,
    answered,
    endpoints_of,
    estimate,
    open_store,
    parse_extra,
    read_batch,
    total,
    write_batch,
)
from revise.handing_on import check_worded, handed_on
from revise.pairs import Made, Pair, Rejected
from revise.prompts import Item, Prompts, PromptsConfig
from revise.target import Target, TargetConfig
from system import InputError, RunError, Stopped, check_new_file, cli


@dataclass(frozen=True, kw_only=True)
class RecipeConfig(TargetConfig, ClientConfig, PromptsConfig):
    """What every recipe that asks a model is told."""

    dedupe: bool = True
    """Ask equal questions once; --no-dedupe has each row's answers drawn anew."""
    temperature: float = 0.7
    """Of the answers of --model; the authors' setting."""
    top_p: float = 1.0
    """... from the likeliest tokens that together have this probability."""
    max_tokens: int = 4096
    """Most tokens of an answer; the authors' setting."""
    empty_system: bool = True
    """Begin with an empty system message, as the authors do."""
    extra: str | None = None
    """JSON object that is merged into each request to --model; null takes a field out, such as
    '{"max_tokens": null, "max_completion_tokens": 4096}'."""
    batch_write: str | None = None
    """Write what would be sent to --model to files for OpenAI's Batch API, in the place of sending it."""
    batch_read: tuple[str, ...] = ()
    """Read answers from that API's output and error files; nothing is sent to --model."""
    config: str | None = None
    """YAML file of settings, named as the flags are; flags win over it."""

    def __post_init__(self) -> None:
        for part in (PromptsConfig, ClientConfig, TargetConfig):
            part.__post_init__(self)
        if not 0 <= self.temperature <= 2 or not 0 < self.top_p <= 1 or self.max_tokens < 1:
            raise InputError("--temperature lies from 0 to 2, --top-p above 0 and up to 1, --max-tokens above 0")
        if self.batch_write and self.batch_read:
            raise InputError("--batch-write and --batch-read: first the one, and when the answers are there the other")
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
    pairs.check_out(out, config.prompts, config.store, config.batch_write)
    if config.batch_write:
        check_new_file(Path(config.batch_write))
    endpoints = endpoints_of(config.endpoint, config)
    target = Target(config, config, n=recipe.n_own, seed=config.seed)
    prompts = Prompts(config, dedupe=config.dedupe)
    for item in prompts:
        if recipe.is_worded:
            check_worded(item.location, item.prompt, item.context)
        else:
            handed_on(item.location, item.context)
    target.check(prompts)
    with open_store(Path(config.store)) as store:
        if config.dry_run:
            print(_estimate(recipe, prompts, target, store))
            return
        drawn = target.fill(prompts, store, len(prompts))
        wanted = (request for item in prompts for request in _questions(recipe, item, target.answers(item, store)))
        if config.batch_write:
            print(write_batch(wanted, store, Path(config.batch_write), config.again), file=sys.stderr)
            return
        ending = None
        if config.batch_read:
            answers = [Path(name) for name in config.batch_read]
            print(read_batch(answers, wanted, store, config, recipe.name), file=sys.stderr)
        else:
            ending = _ask(recipe, wanted, store, endpoints, drawn, len(prompts))
        try:
            with store.snapshot():
                count = pairs.write((_made(recipe, item, target, store) for item in prompts), out)
        except RunError as fault:  # a full disk has been met before
            raise ending or fault from None
        pairs.report(count, len(prompts), out, summary())
        if n_same := store.n_repeated_ids():
            cli.notify(f"{config.store}: {n_same} answers are those of another request; the server mixes them up")
    if ending is not None:
        raise ending
    if count.n_open:
        raise RunError(f"{count.n_open} of {len(prompts)} rows lack an answer; the same command asks for it again")


def _ask(
    recipe: Recipe, wanted: Iterable[Request], store: Store, endpoints: Sequence[Endpoint], drawn: Tally, n_prompts: int
) -> RunError | None:
    """Has what is wanted answered. Gives why it ended early, where there may be answers for some pairs all the same: a
    cap, a dead server. Raises Stopped after a signal. drawn: what the target's answers have taken of the caps.
    """
    try:
        config = recipe.config.after(drawn.n_sent)
        asked = answer_all(wanted, store, config, endpoints, purpose=recipe.name, n_requests=n_prompts)
    except RunError as fault:
        is_signal = isinstance(fault, Stopped) and fault.code != 1
        if is_signal or not store.states():
            raise
        return fault
    print(_spent(drawn, asked, n_prompts), file=sys.stderr)
    return None


def _questions(recipe: Recipe, item: Item, own: list[Answered]) -> list[Request]:
    """What is asked about an item: nothing where its own answers are of no use."""
    texts = [a.completion.text.strip() for a in own if a.completion]
    with contextlib.suppress(Rejected):
        return recipe.ask(item, texts) if len(texts) == len(own) else []
    return []


def _made(recipe: Recipe, item: Item, target: Target, store: Store) -> Made:
    own = target.answers(item, store)
    requests = _questions(recipe, item, own)
    answers = [answered(store, request, recipe.config.accept_finish_reason) for request in requests]
    try:
        pair = _pair(recipe, item, own, answers)
    except Rejected as why:
        pair = why
    provenance: dict[str, Any] = {"recipe": recipe.name, "row": item.number, **item.names}
    provenance |= {"target": [origin(a) for a in own], "answers": [origin(a) for a in answers]}
    texts = {name: [a.text for a in found if a.text] for name, found in (("own", own), ("answers", answers))}
    settings = {"target": target.settings, **_asked_settings(recipe.config), **recipe.settings}
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
    return recipe.pair(item, texts, [a.completion for a in answers if a.completion])


def origin(a: Answered) -> dict[str, Any]:
    """Where an answer is from, for provenance: the model as the server reports it, the request's key, usage, when."""
    if a.row is None or a.completion is None:
        return {"from": "row"} if a.completion else {}
    c = a.completion
    made: dict[str, Any] = {"model": c.model, "request": a.row.key, "finish_reason": c.finish}
    made["usage"] = {"prompt_tokens": c.tokens_in, "completion_tokens": c.tokens_out}
    made |= {} if c.is_counted else {"usage_is_estimated": True}
    made |= {"cut_at": c.cut_at} if c.cut_at else {}
    return made | {"time": datetime.datetime.fromtimestamp(a.row.time, datetime.UTC).isoformat(timespec="seconds")}


# --- what is said --------------------------------------------------------------------------------------------------


def _spent(first: Tally, second: Tally, n: int) -> str:
    n_sent, n_known = first.n_sent + second.n_sent, first.n_known + second.n_known
    n_tokens, dollars = first.n_tokens + second.n_tokens, first.dollars + second.dollars
    return (
        f"{n_sent:,} requests were sent ({n_sent / n:.2f} for each prompt), {n_known:,} answers were in the store; "
        f"{n_tokens / 1e6:,.2f} million tokens, ${dollars:,.2f}"
    )


def _estimate(recipe: Recipe, prompts: Prompts, target: Target, store: Store) -> str:
    """What a run would send, and the most that it can cost."""
    config, known = recipe.config, store.states()
    longest = "x" * (config.target_max_tokens * CHARACTERS_PER_TOKEN)  # for answers that are still to be drawn

    def foreseen() -> Iterator[Request]:
        for item in prompts:
            own = target.answers(item, store)
            texts = [a.completion.text.strip() if a.completion else f"{longest}{k}" for k, a in enumerate(own)]
            with contextlib.suppress(Rejected):
                yield from recipe.ask(item, texts)

    stages = [estimate("target", target.wanted(prompts), known, target.client)] if config.target_endpoint else []
    stages.append(estimate(recipe.name, foreseen(), known, config))
    return "\n".join([*(text for text, _ in stages), total(sum(dollars for _, dollars in stages), config)])
