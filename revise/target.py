"""The model that is to be aligned, and its own answers: given in the rows, sampled here, or asked over HTTP.

Answers that are sampled here go into the store as a server's would, so that a run that is killed goes on. Each has
random numbers of its own, drawn from its request's key: the same seed gives the same answer whatever else is asked.

An answer that was cut at --target-max-tokens is no answer: a pair of it would teach where to stop. It is asked for once
more, with twice as many tokens (drawn here it goes on from where it was cut), and set aside where it is cut again.
"""

import dataclasses
import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tqdm import tqdm

from data.text import TemplateSettings
from revise.client import (
    NO_KEY,
    TARGET,
    Answered,
    ClientConfig,
    Completion,
    Endpoint,
    Estimate,
    Request,
    Row,
    State,
    Store,
    Tally,
    answer_all,
    answered,
    canonical,
    endpoints_of,
    estimate,
    is_open,
    parse_base,
    parse_extra,
    parse_headers,
    read_answer,
)
from revise.handing_on import handed_on
from revise.prompts import Item
from system import InputError
from system.flags import PathText, check_above_zero, check_not_negative

if TYPE_CHECKING:  # it brings torch, which takes seconds and which answers over HTTP do without
    from engine.generate import Answer, Answerer

CHUNK = 256  # answers that are sampled and stored together
MORE = 2  # times --target-max-tokens, of an answer that was cut
LIMITS = ("max_tokens", "max_completion_tokens")
CUT = "truncated"


@dataclass(frozen=True, kw_only=True)
class TargetConfig(TemplateSettings):
    """Whose own answers the pairs are made of, and how they are drawn."""

    target_model: PathText | None = None
    """Checkpoint folder or hub id of the model to align; its answers are sampled on this machine. Not needed for
    rows that already contain the model's answer in "response" (for judge-on-policy, two answers in "responses")."""
    target_endpoint: tuple[str, ...] = ()
    """Base URL of an OpenAI-compatible server of the model to align, instead of --target-model. The chat-template flags
    are for --target-model only."""
    target_name: str = ""
    """Name of the model at --target-endpoint."""
    target_key_env: str | None = None
    """Environment variable that holds the API key of --target-endpoint. Unset: if the server is also one of --endpoint,
    the same key is sent; otherwise none."""
    target_header: tuple[str, ...] = ()
    """Extra header for requests to --target-endpoint, as 'NAME: VALUE', with $VARIABLE from the environment."""
    target_api: Literal["chat", "responses"] = "chat"
    """API of the server at --target-endpoint; see --api."""
    target_extra: str | None = None
    """JSON object to merge into each request to --target-endpoint; null removes a field."""
    target_temperature: float = 1.0
    """Sampling temperature of the model's own answers."""
    target_top_p: float = 1.0
    """Nucleus sampling (top-p) for the target model: sample among the most likely tokens that together have this
    probability. 1 turns it off."""
    target_max_tokens: int = 512
    """Maximum number of tokens of an answer that is sampled from the target model. With --cut-answers again, the
    default, truncated answers are sampled once more with twice this limit. Set engine.train --max-response-tokens
    (default 512) to at least the longer limit, or those answers are truncated in training."""
    cut_answers: Literal["again", "aside", "keep"] = "again"
    """What to do with the target model's answers that reach --target-max-tokens. again: sample once more with twice the
    limit, and leave the row out if that is truncated too. aside: leave the row out. keep: use them, but only as
    rejected responses; the model may then learn only to tell truncated answers from complete ones."""
    target_price_in: float = 0.0
    """Price of a million tokens sent to --target-endpoint, in dollars. With 0 for both prices, these requests count as
    free, and --max-cost does not limit them."""
    target_price_out: float = 0.0
    """Price of a million tokens received from --target-endpoint, in dollars."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Compute dtype of a model that answers on this machine. Unset: bfloat16 on CUDA, float32 on the CPU."""

    def __post_init__(self) -> None:
        TemplateSettings.__post_init__(self)
        if self.given and self.target_model is None:
            raise InputError(f"{self.given[0]}: is for --target-model, which is not given; leave it out")
        if self.target_model is not None and self.target_endpoint:
            raise InputError("--target-model and --target-endpoint: give one of them")
        for base in self.target_endpoint:
            parse_base(base, "--target-endpoint")
        parse_headers(self.target_header, "--target-header")
        parse_extra(self.target_extra, "--target-extra")
        for name in ("target_header", "target_extra"):
            if getattr(self, name) and not self.target_endpoint:
                raise InputError(
                    f"--{name.replace('_', '-')}: is for --target-endpoint, which is not given; leave it out"
                )
        check_not_negative(self, "target_price_in", "target_price_out")
        if self.target_endpoint and not self.target_name:
            raise InputError("--target-endpoint needs the model's name there: --target-name")
        if not 0 <= self.target_temperature < float("inf"):
            raise InputError(f"--target-temperature: {self.target_temperature} has to be at least 0")
        if not 0 < self.target_top_p <= 1:
            raise InputError(f"--target-top-p: {self.target_top_p} has to be above 0 and at most 1")
        check_above_zero(self, "target_max_tokens")


class Drawn(NamedTuple):
    """What it took to have own answers."""

    first: Tally = Tally()
    again: Tally = Tally()
    """Of answers that were cut, asked for once more."""
    said: str = ""
    """What became of those that were cut; "" where none was."""

    @property
    def n_sent(self) -> int:
        """Requests of both."""
        return self.first.n_sent + self.again.n_sent


class Target:
    """Own answers of the model, n to a prompt."""

    def __init__(self, config: TargetConfig, client: ClientConfig, *, n: int, seed: int) -> None:
        """Opens the checkpoint where it answers here; its weights are read when they are needed. Raises InputError."""
        self.n, self._config, self._seed = n, config, seed
        prices = {"price_in": config.target_price_in, "price_out": config.target_price_out}
        cap = client.max_cost if any(prices.values()) else None  # of what costs nothing there is no cap
        how: dict[str, Any] = {"header": config.target_header, "api": config.target_api}
        self.client = dataclasses.replace(client, max_cost=cap, **prices, **how)
        """How its server is asked, at its own prices."""
        self._extra = parse_extra(config.target_extra, "--target-extra")
        self._answerer = _open(config) if config.target_model else None
        self._fingerprint = self._answerer.digest if self._answerer else ""
        self._template = _template_facts(config, self._answerer) if self._answerer else {}
        if self._answerer is not None and self._answerer.chat is None:
            raise InputError(
                f"{config.target_model}: has no tokenizer, but answers have to be text; give another model"
            )

    def check(self, prompts: Iterable[Item]) -> None:
        """Raises InputError for the first prompt that this target cannot answer."""
        for item in prompts:
            if given(item, self.n) is None:
                if self._answerer is not None:
                    self._answerer.prompt_ids(item.location, item.prompt, item.context)
                elif self._config.target_endpoint:
                    handed_on(item.location, item.context)
                else:
                    field = '"response"' if self.n == 1 else f'"responses" (a list of {self.n})'
                    raise InputError(
                        f"{item.location}: no {field}; add it, or give --target-model or --target-endpoint"
                    )

    def requests(self, item: Item) -> list[Request]:
        """What is asked for an item whose answers are not given."""
        c = self._config
        body: dict = {"messages": item.messages, "temperature": c.target_temperature, "top_p": c.target_top_p}
        body["max_tokens"] = c.target_max_tokens
        body |= item.context.fields() if self._answerer else handed_on(item.location, item.context)
        if self._answerer is None:
            body["model"] = c.target_name
            body = {name: value for name, value in (body | self._extra).items() if value is not None}
            return [Request(body, sample, item.occurrence) for sample in range(self.n)]
        body |= {"model": self._fingerprint, "seed": self._seed, **self._template}
        return [Request(body, sample, item.occurrence, path="local") for sample in range(self.n)]

    @property
    def settings(self) -> dict[str, Any]:
        """How its answers are drawn, for provenance."""
        c = self._config
        named: dict[str, Any] = {"temperature": c.target_temperature, "top_p": c.target_top_p}
        named |= {"max_tokens": c.target_max_tokens}
        return named | (
            {"seed": self._seed, "model": self._fingerprint, **self._template}
            if self._answerer
            else {"model": c.target_name} | ({"extra": self._extra} if self._extra else {})
        )

    @property
    def _limit(self) -> int | None:
        """Most tokens of an answer at first; None where --target-extra takes the limit out."""
        body = {"max_tokens": self._config.target_max_tokens} | self._extra
        return next((found for name in LIMITS if isinstance(found := body.get(name), int)), None)

    @property
    def most_tokens(self) -> int:
        """Of an answer, be it asked for again."""
        most = self._limit or self._config.target_max_tokens
        return most * MORE if self._config.cut_answers == "again" else most

    def wanted(self, prompts: Iterable[Item]) -> Iterator[Request]:
        """What is asked for all items whose answers are not given."""
        return (request for _, request in self._wanted(prompts))

    def wanted_again(self, prompts: Iterable[Item], store: Store) -> Iterator[Request]:
        """What may have to be asked for once more: where an answer was cut, and where none is there yet."""
        if self._config.cut_answers == "again":
            for request in self.wanted(prompts):
                found = self._found(store, request)
                if self._limit and (found.is_cut or is_open(found)):
                    yield self._again(request)

    def estimates(self, prompts: Callable[[], Iterable[Item]], store: Store) -> list[Estimate]:
        """What is missing of its server's answers, and the most that it can cost, in lines."""
        if not self._config.target_endpoint:
            return []
        known, stages = store.states(), {"target": self.wanted(prompts())}
        if self._config.cut_answers == "again":
            stages["target again, were every answer cut"] = self.wanted_again(prompts(), store)
        return [estimate(what, requests, known, self.client) for what, requests in stages.items()]

    def _wanted(self, prompts: Iterable[Item]) -> Iterator[tuple[Item, Request]]:
        return ((item, request) for item in prompts if given(item, self.n) is None for request in self.requests(item))

    def _again(self, request: Request) -> Request:
        """The same question, with more tokens for the answer."""
        body = {k: v * MORE if k in LIMITS and isinstance(v, int) else v for k, v in request.body.items()}
        return request._replace(body=body)

    def fill(self, prompts: Callable[[], Iterable[Item]], store: Store, n_prompts: int) -> Drawn:
        """Has every answer that is not given drawn and stored, and those that were cut once more. prompts: gives the
        items as often as they are needed. n_prompts: for the progress bar.
        """
        if self._answerer is None and not self._config.target_endpoint:
            return Drawn()
        asked = ((i, r) for i, r in self._wanted(prompts()) if not self._is_settled(store, r))
        first = self._draw(asked, store, self.client, n_prompts * self.n)
        cut = {r.key for r in self.wanted(prompts()) if self._found(store, r).is_cut}
        again = Tally()
        if cut and self._config.cut_answers == "again":
            asked = ((i, r) for i, r in self._wanted(prompts()) if r.key in cut and self._no_room(store, r) is None)
            useful = (r for r in self.wanted(prompts()) if self._found(store, r).completion is not None)
            known = itertools.islice(useful, 1)  # that its server is of use is known by then, whatever comes now
            again = self._draw(asked, store, self.client.after(first.n_sent), len(cut), is_again=True, known=known)
        return Drawn(first, again, self._said(cut, prompts, store) if cut else "")

    def _draw(
        self,
        wanted: Iterable[tuple[Item, Request]],
        store: Store,
        client: ClientConfig,
        n: int,
        *,
        is_again: bool = False,
        known: Iterable[Request] = (),
    ) -> Tally:
        """Has what is wanted drawn and stored. n: for the progress bar. is_again: with more tokens. known: what has
        answers of use already.
        """
        if self._answerer is not None:
            return self._answer_here(self._answerer, wanted, store, n, is_again=is_again)
        new = (self._again(request) if is_again else request for _, request in wanted)
        requests = itertools.chain(known, new)
        return answer_all(requests, store, client, self.endpoints(), purpose="target", role=TARGET, n_requests=n)

    def _found(self, store: Store, request: Request) -> Answered:
        return answered(store, request, self.client.accept_finish_reason, goes_on=self.client.go_on)

    def _is_settled(self, store: Store, request: Request) -> bool:
        """Whether an answer was cut and is of use all the same, so that --ask-again does not ask for another one."""
        was_cut = self.client.ask_again and self._found(store, request).is_cut
        return was_cut and self._whole(store, request).completion is not None

    def _no_room(self, store: Store, request: Request) -> str | None:
        """Why an answer that was cut could not have been longer. One that was drawn here is counted, and ends before
        the limit only where the model's context does.
        """
        if self._limit is None:
            return "by the server, at a limit of its own"
        row = store.get(request.key)
        is_full = self._answerer is not None and row is not None and row.tokens_out < self._limit
        return "the model's context is full" if is_full else None

    def _said(self, cut: set[str], prompts: Callable[[], Iterable[Item]], store: Store) -> str:
        """What became of answers that were cut."""
        said = f"{len(cut):,} own answers were cut" + (f" at {self._limit:,} tokens" if self._limit else "")
        if self._config.cut_answers != "again":
            return f"{said}: {'set aside' if self._config.cut_answers == 'aside' else 'kept as losers'} (--cut-answers)"
        whole = {r.key for r in self.wanted(prompts()) if r.key in cut and self._whole(store, r).completion is not None}
        again = f"asked for again with {self.most_tokens:,}, {len(whole):,} are whole" if self._limit else ""
        return f"{said}: {', '.join(filter(None, (again, f'{len(cut) - len(whole):,} are set aside')))}"

    def endpoints(self) -> list[Endpoint]:
        """The servers that answer for the model. A key goes only where it was given for."""
        c, client = self._config, self.client
        if c.target_key_env is not None:
            named = dataclasses.replace(client, key_env=(c.target_key_env,), key_file=None)
            return endpoints_of(c.target_endpoint, named, flag="--target-endpoint")
        reviser = dataclasses.replace(client, header=())
        known = {e.origin: e.key for e in endpoints_of(client.endpoint, reviser)} if client.endpoint else {}
        keyless = dataclasses.replace(client, key_env=(NO_KEY,), key_file=None)
        made = endpoints_of(c.target_endpoint, keyless, flag="--target-endpoint")
        return [dataclasses.replace(e, key=known.get(e.origin)) for e in made]

    def answers(self, item: Item, store: Store) -> list[Answered]:
        """Its answers: given or stored, or why there is none."""
        texts = given(item, self.n)
        if texts is not None:
            whose = item.reasoning
            return [Answered(Completion(text, None, "", 0, 0, False, None, reasoning=whose)) for text in texts]
        return [self._whole(store, request) for request in self.requests(item)]

    def _whole(self, store: Store, request: Request) -> Answered:
        """What is known of a request, and where its answer was cut what became of that."""
        found = self._found(store, request)
        if not found.is_cut:
            return found
        if self._config.cut_answers == "keep" and found.text.strip() and found.unusable:
            return Answered(found.unusable._replace(fault=None), "", found.row)
        if (why := self._no_room(store, request)) is not None:
            return _aside(found, why)
        raised = "raise --target-max-tokens"
        if self._config.cut_answers != "again":
            return _aside(found, f"at {self._limit:,} tokens; {raised}")
        again = self._found(store, self._again(request))
        if again.row is None:  # the run ended before it was asked for again
            return _aside(found, f"at {self._limit:,} tokens; {raised}")
        if not again.is_cut:
            return again
        return _aside(again, f"at {self._limit:,} tokens, and again at {self.most_tokens:,}; {raised}")

    def _answer_here(
        self,
        answerer: "Answerer",
        wanted: Iterable[tuple[Item, Request]],
        store: Store,
        n: int,
        *,
        is_again: bool,
    ) -> Tally:
        """is_again: with more tokens, and the random numbers that each answer had: it is the same, and goes on."""
        from engine.generate import Sampling

        c, known = self._config, store.states()
        tally, seen = Tally(), set()
        most = c.target_max_tokens * (MORE if is_again else 1)
        sampling = Sampling(
            max_new_tokens=most, temperature=c.target_temperature, top_p=c.target_top_p, seed=self._seed
        )

        def missing() -> Iterator[tuple[Item, Request, int]]:
            nonlocal tally
            for item, first in wanted:
                request = self._again(first) if is_again else first
                key = bytes.fromhex(request.key)
                if key in known and key not in seen:
                    tally = tally._replace(n_known=tally.n_known + 1)
                    bar.update()
                elif key not in seen:
                    yield item, request, int(first.key[:15], 16)
                seen.add(key)

        with tqdm(total=n, unit="answer", desc="target", disable=None) as bar:
            todo = missing()
            while chunk := list(itertools.islice(todo, CHUNK)):
                ids = [answerer.prompt_ids(item.location, item.prompt, item.context) for item, _, _ in chunk]
                numbers = [number for _, _, number in chunk]
                found = answerer.answer(ids, sampling, lambda answer: bar.update(), numbers)
                rows = [
                    _stored(request, answerer, answer, len(ids[answer.prompt]))
                    for (_, request, _), answer in zip(chunk, found, strict=True)
                ]
                store.write(rows)
                tally = tally._replace(
                    n_stored=tally.n_stored + len(rows), n_tokens=tally.n_tokens + sum(r.tokens_out for r in rows)
                )
        return tally


def _aside(found: Answered, why: str) -> Answered:
    """An answer that was cut, with how; that its thoughts took all of the tokens is known already."""
    return found._replace(fault=f"{CUT}: {why}") if found.fault == CUT else found


def _open(config: TargetConfig) -> "Answerer":
    from engine.generate import Answerer

    return Answerer.open(str(config.target_model), config.dtype, config)


def _template_facts(config: TargetConfig, answerer: "Answerer") -> dict[str, Any]:
    """What of an answer's key the flags of the template are: none where none is given, as before there were such."""
    if answerer.chat is None or not config.given:
        return {}
    template, made = answerer.chat.template, {}
    if config.chat_template is not None:
        made["chat_template"] = hashlib.sha256(template.source.encode()).hexdigest()[:16]
    if config.kwargs:
        made["kwargs"] = config.kwargs
    if config.template_date is not None and template.day is not None:
        made["date"] = template.day.isoformat()
    return {"template": made} if made else {}


def _stored(request: Request, answerer: "Answerer", answer: "Answer", n_prompt: int) -> Row:
    """An answer that was drawn here, as a server would have sent it."""
    counts = {"prompt_tokens": n_prompt, "completion_tokens": len(answer.ids)}
    message = {"role": "assistant", "content": answerer.text(answer)}
    choice = {"index": 0, "message": message, "finish_reason": answer.finish}
    raw = canonical({"model": answerer.folder.name, "choices": [choice], "usage": counts}).encode()
    read = read_answer(raw, request)
    state: State = "unusable" if read.fault else "answered"
    body = canonical(request.body)
    return Row(
        *(request.key, "target", state, body, raw, None, 1, 0.0, n_prompt, len(answer.ids), True, 0.0, time.time())
    )


def given(item: Item, n: int) -> list[str] | None:
    """The answers that a row brings with it: "response", or "responses" where several are wanted. Raises InputError."""
    found = item.row.get("response") if n == 1 else item.row.get("responses")
    if found is None:
        return None
    texts = [found] if n == 1 else found
    if not isinstance(texts, list) or len(texts) < n or not all(isinstance(t, str) and t.strip() for t in texts):
        wanted = '"response" has to be text' if n == 1 else f'"responses" has to be a list of {n} texts'
        raise InputError(f"{item.location}: {wanted}; write it, or leave the field out")
    return [text.strip() for text in texts[:n]]
