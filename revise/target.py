"""The model that is to be aligned, and its own answers: given in the rows, sampled here, or asked over HTTP.

Answers that are sampled here go into the store as a server's would, so that a run that is killed goes on. Each has
random numbers of its own, drawn from its request's key: the same seed gives the same answer whatever else is asked.
"""

import dataclasses
import hashlib
import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm

from data.text import TemplateSettings
from revise.client import (
    Answered,
    ClientConfig,
    Completion,
    Endpoint,
    Request,
    Row,
    State,
    Store,
    Tally,
    answer_all,
    answered,
    canonical,
    endpoints_of,
    parse_base,
    read_answer,
)
from revise.handing_on import handed_on
from revise.prompts import Item
from system import InputError

if TYPE_CHECKING:  # it brings torch, which takes seconds and which answers over HTTP do without
    from engine.generate import Answer, Answerer

CHUNK = 256  # answers that are sampled and stored together


@dataclass(frozen=True, kw_only=True)
class TargetConfig(TemplateSettings):
    """Whose own answers the pairs are made of, and how they are drawn."""

    target_model: str | None = None
    """Checkpoint folder or hub id of the model to be aligned, which answers here. Rows that carry "response" (for
    judge-on-policy a list, "responses") need none."""
    target_endpoint: tuple[str, ...] = ()
    """Address of an OpenAI-compatible server of that model, in its place."""
    target_name: str = ""
    """Its name there."""
    target_key_env: str | None = None
    """Environment variable of that server's API key. Unset: no key is sent, unless it is one of --endpoint."""
    target_temperature: float = 1.0
    """Its answers are drawn at that temperature."""
    target_top_p: float = 1.0
    """... from the likeliest tokens that together have this probability."""
    target_max_tokens: int = 512
    """Most tokens of its answers; engine.train keeps 512 of a response."""
    target_price_in: float = 0.0
    """Dollars for a million tokens sent to --target-endpoint."""
    target_price_out: float = 0.0
    """Dollars for a million tokens received from it."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of a model that answers here. Unset: bfloat16 on CUDA, float32 on the CPU."""

    def __post_init__(self) -> None:
        TemplateSettings.__post_init__(self)
        if self.given and self.target_model is None:
            raise InputError(f"{self.given[0]}: is of --target-model, which answers here; leave it out")
        if self.target_model is not None and self.target_endpoint:
            raise InputError("--target-model and --target-endpoint: give the one or the other")
        for base in self.target_endpoint:
            parse_base(base, "--target-endpoint")
        if self.target_price_in < 0 or self.target_price_out < 0:
            raise InputError("--target-price-in and --target-price-out are not below 0")
        if self.target_endpoint and not self.target_name:
            raise InputError("--target-endpoint needs the model's name there: --target-name")
        if (
            not 0 <= self.target_temperature < float("inf")
            or not 0 < self.target_top_p <= 1
            or self.target_max_tokens < 1
        ):
            raise InputError(
                "--target-temperature is 0 or above, --target-top-p above 0 and up to 1, --target-max-tokens above 0"
            )


class Target:
    """Own answers of the model, n to a prompt."""

    def __init__(self, config: TargetConfig, client: ClientConfig, *, n: int, seed: int) -> None:
        """Opens the checkpoint where it answers here; its weights are read when they are needed. Raises InputError."""
        self.n, self._config, self._seed = n, config, seed
        prices = {"price_in": config.target_price_in, "price_out": config.target_price_out}
        cap = client.max_cost if any(prices.values()) else None  # of what costs nothing there is no cap
        self.client = dataclasses.replace(client, max_cost=cap, **prices)
        """How its server is asked, at its own prices."""
        self._answerer = _open(config) if config.target_model else None
        self._fingerprint = self._answerer.digest if self._answerer else ""
        self._template = _template_facts(config, self._answerer) if self._answerer else {}
        if self._answerer is not None and self._answerer.chat is None:
            raise InputError(f"{config.target_model}: has no tokenizer, and answers have to be text")

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
                        f"{item.location}: no {field}; put it there, or give --target-model or --target-endpoint"
                    )

    def requests(self, item: Item) -> list[Request]:
        """What is asked for an item whose answers are not given."""
        c = self._config
        body: dict = {"messages": item.messages, "temperature": c.target_temperature, "top_p": c.target_top_p}
        body["max_tokens"] = c.target_max_tokens
        body |= item.context.fields() if self._answerer else handed_on(item.location, item.context)
        if self._answerer is None:
            body["model"] = c.target_name
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
            else {"model": c.target_name}
        )

    def wanted(self, prompts: Iterable[Item]) -> Iterator[Request]:
        """What is asked for all items whose answers are not given."""
        return (request for item in prompts if given(item, self.n) is None for request in self.requests(item))

    def fill(self, prompts: Iterable[Item], store: Store, n_prompts: int) -> Tally:
        """Has every answer that is not given drawn and stored. n_prompts: for the progress bar."""
        n = n_prompts * self.n
        if self._answerer is not None:
            return self._answer_here(self._answerer, prompts, store, n)
        if not self._config.target_endpoint:
            return Tally()
        return answer_all(self.wanted(prompts), store, self.client, self.endpoints(), purpose="target", n_requests=n)

    def endpoints(self) -> list[Endpoint]:
        """The servers that answer for the model. A key goes only where it was given for."""
        c, client = self._config, self.client
        if c.target_key_env is not None:
            named = dataclasses.replace(client, key_env=(c.target_key_env,), key_file=None)
            return endpoints_of(c.target_endpoint, named, flag="--target-endpoint")
        known = {e.origin: e.key for e in endpoints_of(client.endpoint, client)} if client.endpoint else {}
        made = [Endpoint(parse_base(b, "--target-endpoint"), None, client.concurrency) for b in c.target_endpoint]
        return [dataclasses.replace(e, key=known.get(e.origin)) for e in made]

    def answers(self, item: Item, store: Store) -> list[Answered]:
        """Its answers: given or stored, or why there is none."""
        texts = given(item, self.n)
        if texts is not None:
            return [Answered(Completion(text, None, "", 0, 0, False, None)) for text in texts]
        return [answered(store, request, self.client.accept_finish_reason) for request in self.requests(item)]

    def _answer_here(self, answerer: "Answerer", prompts: Iterable[Item], store: Store, n: int) -> Tally:
        from engine.generate import Sampling

        c, known = self._config, store.states()
        tally, seen = Tally(), set()
        sampling = Sampling(
            max_new_tokens=c.target_max_tokens, temperature=c.target_temperature, top_p=c.target_top_p, seed=self._seed
        )

        def missing() -> Iterator[tuple[Item, Request]]:
            nonlocal tally
            for item in prompts:
                for request in self.requests(item) if given(item, self.n) is None else ():
                    key = bytes.fromhex(request.key)
                    if key in known and key not in seen:
                        tally = tally._replace(n_known=tally.n_known + 1)
                        bar.update()
                    elif key not in seen:
                        yield item, request
                    seen.add(key)

        with tqdm(total=n, unit="answer", desc="target", disable=None) as bar:
            todo = missing()
            while chunk := list(itertools.islice(todo, CHUNK)):
                ids = [answerer.prompt_ids(item.location, item.prompt, item.context) for item, _ in chunk]
                numbers = [int(request.key[:15], 16) for _, request in chunk]
                found = answerer.answer(ids, sampling, lambda answer: bar.update(), numbers)
                rows = [
                    _stored(request, answerer, answer, len(ids[answer.prompt]))
                    for (_, request), answer in zip(chunk, found, strict=True)
                ]
                store.write(rows)
                tally = tally._replace(
                    n_stored=tally.n_stored + len(rows), n_tokens=tally.n_tokens + sum(r.tokens_out for r in rows)
                )
        return tally


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
