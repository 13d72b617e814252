"""What the evaluators share: how the evaluated model answers, and how a judge is asked."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from data import files
from data.errors import InputError, RunError
from data.records import Message
from eval import checkpoints, scores
from eval.checkpoints import Checkpoint
from revise.client import Answered, ClientConfig, Request, Store, answer_all, answered, endpoints_of, said

SEED = 42


@dataclass(frozen=True, kw_only=True)
class JudgedConfig(ClientConfig):
    """A model, its answers and their judge.

    --endpoint and --model name a server that answers in the place of the checkpoint (vLLM, for large models).
    """

    what: tyro.conf.Positional[str]
    """A run's folder, whose epoch-... are scored, or a checkpoint's; with --endpoint a name for the served model."""
    judge_endpoint: tuple[str, ...]
    """Address of an OpenAI-compatible server of the judge."""
    judge: str
    """The judge's name there; upstream's own are retired."""
    judge_key_env: tuple[str, ...] = ("OPENAI_API_KEY",)
    """Environment variable of the judge's API key."""
    judge_extra: str | None = None
    """JSON object that is merged into each request to the judge; null takes a field out."""
    other_judge: bool = False
    """Go on where the server names another model in the midst of a pass: scores of two judges in one table."""
    base: bool = True
    """Score the model that the run began with too, as "base": deltas are taken against it. --no-base leaves it out."""
    base_scores: str | None = None
    """Another run's scores.jsonl to take the base model's numbers from."""
    any_data: bool = False
    """Take data of another checksum, and say so."""
    out: str | None = None
    """Folder for answers, judgments and scores. Unset: eval/ in the run's or checkpoint's folder."""
    config: str | None = None
    """YAML file of settings, named as the flags are; flags win over it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.endpoint and not self.model:
            raise InputError("--endpoint needs the model's name there: --model")
        if not self.endpoint and not Path(self.what).is_dir():
            raise InputError(f"{self.what}: no such folder; give a run's, a checkpoint's, or a server by --endpoint")
        parse_extra(self.judge_extra)

    @property
    def folder(self) -> Path:
        """Where scores go."""
        return Path(self.out) if self.out else Path(self.what) / "eval"


def parse_extra(text: str | None) -> dict[str, Any]:
    """What --judge-extra says. Raises InputError."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"--judge-extra: {text!r} is no JSON object, such as '{{\"seed\": 1}}'")
    return found


def find(config: JudgedConfig) -> list[Checkpoint]:
    """What is scored: with --endpoint the served model alone. Copies --base-scores. Raises InputError."""
    if config.base_scores:
        scores.copy_base(Path(config.base_scores), config.folder / scores.NAME)
    with_base = config.base and config.base_scores is None
    if config.endpoint:
        return [Checkpoint(config.what, Path(config.what))]
    return checkpoints.find(Path(config.what), with_base=with_base)


# --- answers -------------------------------------------------------------------------------------------------------


def responses(
    checkpoint: Checkpoint,
    prompts: Mapping[str, str],
    config: JudgedConfig,
    store: Store,
    beside: Path,
    *,
    temperature: float,
    top_p: float,
    max_tokens: int,
) -> dict[str, str]:
    """A model's answers to prompts of one user message, by name: drawn here, or by a server.

    beside: the file that they will stand in; what is drawn is kept beside it until `settle` is called with it.
    """
    if config.endpoint:
        body: dict[str, Any] = {"model": config.model, "max_tokens": max_tokens, "seed": SEED}
        return _served(prompts, body | {"temperature": temperature, "top_p": top_p}, config, store)
    from engine.generate import Answerer, Sampling, draw  # it brings torch, which a served model does without

    answerer = Answerer.open(str(checkpoint.folder))
    if answerer.chat is None:
        raise InputError(f"{checkpoint.folder}: has no tokenizer, and answers have to be text")
    ids = [answerer.prompt_ids(f"query {name}", [Message("user", prompt)]) for name, prompt in prompts.items()]
    sampling = Sampling(max_new_tokens=max_tokens, seed=SEED, temperature=temperature, top_p=top_p)
    partial = draw(answerer, ids, sampling, beside, name=checkpoint.name)
    return {name: partial.answers[i, 0]["response"] for i, name in enumerate(prompts)}


def settle(beside: Path) -> None:
    """The answers are written: what was kept beside them can go."""
    beside.with_name(f"{beside.name}.partial").unlink(missing_ok=True)


def _served(prompts: Mapping[str, str], body: dict[str, Any], config: JudgedConfig, store: Store) -> dict[str, str]:
    """Answers of a served model. Raises RunError where one has none."""
    requests = {
        name: Request(body | {"messages": [{"role": "user", "content": prompt}]}) for name, prompt in prompts.items()
    }
    answer_all(requests.values(), store, config, endpoints_of(config.endpoint, config), purpose="answer")
    found = {name: answered(store, request) for name, request in requests.items()}
    if missing := [a.fault for a in found.values() if said(a) is None]:
        raise RunError(
            f"{len(missing)} of {len(found)} answers are missing ({missing[0]}); the same command asks again"
        )
    return {name: said(a) or "" for name, a in found.items()}


# --- the judge -----------------------------------------------------------------------------------------------------


class Judge:
    """A judge behind a server: one count of what was sent, and one name of who has answered."""

    def __init__(self, client: ClientConfig, store: Store, *, extra: Mapping[str, Any], others: bool = False) -> None:
        """client: how it is asked. extra: merged into each request. others: let who answers change.

        Raises InputError where its address or key cannot be used.
        """
        self._client, self._extra, self._others, self._n_sent = client, extra, others, 0
        self._endpoints = endpoints_of(client.endpoint, client, flag="--judge-endpoint")
        self.store = store
        self.models: list[str] = []
        """Names that the server has given to who answers, in the order in which they came."""

    def request(self, body: Mapping[str, Any], sample: int = 0) -> Request:
        """One question, with what the user adds to it."""
        merged = {"model": self._client.model, **body, **self._extra}
        return Request({name: value for name, value in merged.items() if value is not None}, sample)

    def ask(self, requests: Sequence[Request]) -> list[Answered]:
        """What is known of each after those that are new were sent. Raises RunError where the judge changes."""
        client = self._client.after(self._n_sent)
        tally = answer_all(requests, self.store, client, self._endpoints, purpose="judge", n_requests=len(requests))
        self._n_sent += tally.n_sent
        found = [answered(self.store, request) for request in requests]
        names = dict.fromkeys(a.completion.model for a in found if a.completion and a.completion.model)
        self.models += [name for name in names if name not in self.models]
        if len(self.models) > 1 and not self._others:
            raise RunError(
                f"the judge's server says that {self.models[1]!r} answers, and said {self.models[0]!r} before; begin a "
                "new --store with one of them, or say --other-judge"
            )
        return found

    @property
    def facts(self) -> dict[str, Any]:
        """Who judged, for scores."""
        return {"judge": self._client.model, "judge_model": " and ".join(self.models) or None}


def judge_of(config: JudgedConfig, store: Store) -> Judge:
    """The judge that a command names. Raises InputError."""
    client = dataclasses.replace(
        config, endpoint=config.judge_endpoint, model=config.judge, key_env=config.judge_key_env
    )
    return Judge(client, store, extra=parse_extra(config.judge_extra), others=config.other_judge)


def price(requests: Iterable[tuple[int, int]], config: JudgedConfig, what: str) -> str:
    """A sentence on what requests of (tokens in, tokens out at most) can cost at most."""
    n = n_in = n_out = 0
    for tokens_in, tokens_out in requests:
        n, n_in, n_out = n + 1, n_in + tokens_in, n_out + tokens_out
    dollars = (n_in * config.price_in + n_out * config.price_out) / 1e6
    priced = (
        f", at most ${dollars:,.2f}"
        if config.price_in or config.price_out
        else "; --price-in and --price-out say what it costs"
    )
    return f"{what}: {n:,} requests at most, about {n_in:,} tokens to send, at most {n_out:,} to receive{priced}"


def write_json(path: Path, value: Any) -> None:
    """A whole JSON file."""
    with files.whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
