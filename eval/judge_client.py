"""What the evaluators share: a judge, and how it is asked."""

import contextlib
import dataclasses
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from data.rows import is_model_folder
from data.text import TemplateSettings
from eval import checkpoints, scores
from eval.checkpoints import Checkpoint
from revise.client import (
    JUDGE,
    NO_KEY,
    SERVED,
    Answered,
    ClientConfig,
    Endpoint,
    Request,
    Role,
    Store,
    answer_all,
    answered,
    endpoints_of,
    open_store,
    parse_extra,
    parse_headers,
)
from system import InputError, RunError
from system.flags import PathText


@dataclass(frozen=True, kw_only=True)
class JudgedConfig(ClientConfig, TemplateSettings):
    """A model, its answers and their judge.

    --endpoint and --model name a server that answers instead of the checkpoint, such as vLLM for a large model.
    """

    chat_template: PathText | None = None
    """Chat template to use instead of the checkpoint's own: a file, or the name of one of several templates that the
    checkpoint has. Unset: the template that the training run was given, also for the base model; if it was given none,
    each checkpoint's own."""
    chat_template_kwargs: str | None = None
    """Extra variables for the chat template: enable_thinking=false,reasoning_effort=low. A value is read as JSON where
    possible, else as text. Unset: those of the training run."""
    template_date: str | None = None
    """Date, as YYYY-MM-DD, for chat templates that print the current date. Unset: the date that the training run
    recorded, or today if there is none."""
    what: tyro.conf.Positional[PathText]
    """Folder of a run, whose checkpoints are scored, or of one checkpoint. With --endpoint: a name for the served
    model."""
    endpoint: tuple[str, ...] = ()
    """Base URL of an OpenAI-compatible server that answers as the evaluated model, instead of a checkpoint on this
    machine; needs --model. Several URLs share the requests. The chat-template flags are for a checkpoint only. Unset:
    the checkpoint answers here."""
    model: str = ""
    """Name of the evaluated model at --endpoint."""
    store: PathText
    """SQLite file that keeps every answer of the judge and of --endpoint. A rerun with the same file sends only
    requests whose answer is missing."""
    judge_endpoint: tuple[str, ...]
    """Base URL of an OpenAI-compatible server of the judge."""
    judge: str
    """Name of the judge at --judge-endpoint. The judges of the benchmark's authors are retired, so name your own."""
    judge_key_env: tuple[str, ...] = ("OPENAI_API_KEY",)
    """Environment variable that holds the judge's API key."""
    judge_key_file: PathText | None = None
    """File that holds the judge's API key, instead of an environment variable."""
    price_in: float = 0.0
    """Price of a million tokens sent to the judge, in dollars. The model at --endpoint counts as free. 0: unknown or
    free. --max-cost needs --price-in or --price-out."""
    price_out: float = 0.0
    """Price of a million tokens received from the judge, in dollars. 0: unknown or free."""
    key_env: tuple[str, ...] = (NO_KEY,)
    """Environment variable that holds the API key of --endpoint. The default, none, sends no key; the judge's key is
    never sent there."""
    key_file: PathText | None = None
    """File that holds the API key of --endpoint, instead of an environment variable."""
    judge_header: tuple[str, ...] = ()
    """Extra header for requests to the judge, as 'NAME: VALUE', with $VARIABLE from the environment."""
    judge_api: Literal["chat", "responses"] = "chat"
    """API of the judge's server; see --api."""
    extra: str | None = None
    """JSON object to merge into each request to --endpoint; null removes a field."""
    judge_extra: str | None = None
    """JSON object to merge into each request to the judge; null removes a field."""
    other_judge: bool = False
    """Continue even if the judge's server starts to report another model in the middle of a run; the scores in one
    table then come from two judges. By default the run stops."""
    base: bool = True
    """Score the model that the run began with too, as "base"; gains are measured against it. --no-base leaves it
    out."""
    base_scores: PathText | None = None
    """Another run's scores.jsonl to take the base model's scores from, instead of scoring it again."""
    checkpoint: tuple[str, ...] = ()
    """Names of the run's checkpoints to score, such as epoch-03; base is the model that the run began with. Unset:
    all."""
    any_data: bool = False
    """Accept benchmark files whose checksum is not that of the published ones, with a notice."""
    out: PathText | None = None
    """Folder for answers, judgments and scores. Unset: eval/ in the folder of the run or checkpoint; with --endpoint,
    NAME/eval in the current folder, where NAME is the first argument."""
    config: PathText | None = None
    """YAML file with settings under the names of the flags. Flags on the command line win over it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        TemplateSettings.__post_init__(self)
        if self.endpoint and self.given:
            raise InputError(f"{self.given[0]}: applies to a local checkpoint, not to --endpoint; leave it out")
        if self.endpoint and not self.model:
            raise InputError("--endpoint needs the model's name there: --model")
        if not self.endpoint and (self.key_file is not None or self.key_env != (NO_KEY,)):
            raise InputError(
                "--key-env and --key-file are for --endpoint; the judge's are --judge-key-env and --judge-key-file"
            )
        if not self.endpoint and not Path(self.what).is_dir():
            raise InputError(
                f"{self.what}: no such folder; give that of a run or a checkpoint, or a server by --endpoint"
            )
        if not self.endpoint and (self.header or self.extra):
            raise InputError(
                "--header and --extra are for --endpoint; the judge's are --judge-header and --judge-extra"
            )
        if self.checkpoint and (self.endpoint or is_model_folder(Path(self.what))):
            raise InputError("--checkpoint is for a run's folder, but here one model is scored; leave it out")
        parse_headers(self.judge_header, "--judge-header")
        parse_extra(self.extra)
        parse_extra(self.judge_extra, "--judge-extra")

    @property
    def has_base(self) -> bool:
        """Whether the base model is scored in this pass."""
        return (self.base and self.base_scores is None) or scores.BASE in self.checkpoint

    @property
    def folder(self) -> Path:
        """Where scores go."""
        return Path(self.out) if self.out else Path(self.what) / "eval"


def find(config: JudgedConfig) -> list[Checkpoint]:
    """What is scored: with --endpoint the served model alone. Raises InputError."""
    if config.endpoint:
        return [Checkpoint(re.sub(r"[^\w.-]+", "_", config.what), Path(config.what))]
    return named(config, config.checkpoint)


def named(config: JudgedConfig, names: Sequence[str]) -> list[Checkpoint]:
    """The checkpoints of a run by their names, all where there are none, the base first. Raises InputError."""
    found = {c.name: c for c in checkpoints.find(Path(config.what), with_base=config.has_base)}
    if missing := [name for name in names if name not in found]:
        raise InputError(f"{config.what}: has no checkpoint {missing[0]!r}; it has {', '.join(found)}")
    with_base = [scores.BASE] if config.has_base and scores.BASE in found else []
    return [found[name] for name in dict.fromkeys([*with_base, *(names or found)])]


def take_base(config: JudgedConfig) -> None:
    """Puts the numbers of --base-scores beside the run's own. Raises InputError where none compare with what comes."""
    if config.base_scores:
        scores.copy_base(Path(config.base_scores), config.folder / scores.NAME, judge=config.judge)


# --- the judge -----------------------------------------------------------------------------------------------------


@dataclass
class Sent:
    """What a command has sent so far, to whomever: --max-requests is for all of it."""

    store: Store
    n: int = 0

    def ask(
        self,
        requests: Sequence[Request],
        client: ClientConfig,
        endpoints: Sequence[Endpoint],
        purpose: str,
        role: Role = SERVED,
    ) -> list[Answered]:
        """What is known of each request after those that are new were sent."""
        tally = answer_all(
            requests, self.store, client.after(self.n), endpoints, purpose=purpose, role=role, n_requests=len(requests)
        )
        self.n += tally.n_sent
        return [answered(self.store, request, client.accept_finish_reason) for request in requests]


class Judge:
    """A judge behind a server, and the name of who has answered there."""

    def __init__(self, client: ClientConfig, sent: Sent, *, extra: Mapping[str, Any], others: bool = False) -> None:
        """client: how it is asked. extra: merged into each request. others: let who answers change.

        Raises InputError where its address or key cannot be used.
        """
        self._client, self._extra, self._others = client, extra, others
        self._endpoints = endpoints_of(client.endpoint, client, flag="--judge-endpoint")
        self._sent = sent
        self.models: list[str] = []
        """Names that the server has given to who answers, in the order in which they came."""

    def request(self, body: Mapping[str, Any], sample: int = 0, *, as_is: bool = False) -> Request:
        """One question, with what the user adds to it. A greedy judge is asked again (sample > 0) at temperature 1.

        as_is: see Request.
        """
        merged = {"model": self._client.model, **body, **self._extra}
        if sample > 0 and merged.get("temperature") == 0:
            merged["temperature"] = 1.0
        return Request({name: value for name, value in merged.items() if value is not None}, sample, as_is=as_is)

    def ask(self, requests: Sequence[Request]) -> list[Answered]:
        """What is known of each after those that are new were sent. Raises RunError where the judge changes."""
        found = self._sent.ask(requests, self._client, self._endpoints, "judge", JUDGE)
        names = dict.fromkeys(a.completion.model for a in found if a.completion and a.completion.model)
        self.models += [name for name in names if name not in self.models]
        if len(self.models) > 1 and not self._others:
            raise RunError(
                f"the judge's server names {self.models[1]!r} as its model, and named {self.models[0]!r} before; take "
                "a new --store with one of them, or accept both with --other-judge"
            )
        return found

    def found_wanting(self, requests: Sequence[Request], why: str) -> RunError:
        """Says of what the judge is tried on that its answers are of no use; gives the error that says so."""
        self._sent.store.mark_unusable(dict.fromkeys(request.key for request in requests))
        return RunError(f"--judge: {why}; once its server is fixed, --ask-again asks it again")

    @property
    def facts(self) -> dict[str, Any]:
        """Who judged, for scores."""
        extra = json.dumps(self._extra, sort_keys=True) if self._extra else None
        return {"judge": self._client.model, "judge_model": " and ".join(self.models) or None, "judge_extra": extra}


def judge_of(config: JudgedConfig, sent: Sent) -> Judge:
    """The judge that a command names. Raises InputError."""
    return Judge(client_of_judge(config), sent, extra=parse_extra(config.judge_extra), others=config.other_judge)


@contextlib.contextmanager
def aside(config: JudgedConfig) -> Iterator[Judge]:
    """The judge, asked with little patience, whose answers are not kept."""
    with tempfile.TemporaryDirectory() as folder, open_store(Path(folder) / "judge.sqlite") as store:
        short = dataclasses.replace(
            config, store=str(store.path), max_attempts=2, patience=60.0, max_cost=None, max_requests=None
        )
        yield judge_of(short, Sent(store))


def client_of_judge(config: JudgedConfig) -> ClientConfig:
    """How the judge is asked."""
    return _client(
        config, endpoint=config.judge_endpoint, model=config.judge, key_env=config.judge_key_env,
        key_file=config.judge_key_file, header=config.judge_header, api=config.judge_api,
    )  # fmt: skip


def client_of_model(config: JudgedConfig) -> ClientConfig:
    """How a served model is asked; the prices are the judge's."""
    return _client(config, price_in=0.0, price_out=0.0)


def _client(config: JudgedConfig, **changes: Any) -> ClientConfig:
    shared: dict[str, Any] = {f.name: getattr(config, f.name) for f in dataclasses.fields(ClientConfig)}
    return ClientConfig(**shared | changes)
