"""How the evaluated model answers: drawn here, or by a server; and the file that says whose answers they are."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data.text import Message
from eval import checkpoints
from eval.checkpoints import Checkpoint
from eval.judge_client import JudgedConfig, Sent, client_of_model
from revise.client import Request, endpoints_of, is_open, parse_extra, said
from system import InputError, RunError, cli, files

if TYPE_CHECKING:
    from engine.generate import Answerer

SEED = 42


class How(NamedTuple):
    """How answers are drawn."""

    temperature: float
    top_p: float
    max_tokens: int


class Model:
    """A checkpoint that answers, its weights read once and only when they are needed."""

    def __init__(self, checkpoint: Checkpoint, config: JudgedConfig, sent: Sent) -> None:
        self.checkpoint, self._config, self._sent = checkpoint, config, sent
        self._answerer: Answerer | None = None
        self.unanswered: dict[str, str] = {}
        """Of the newest prompts, by name, why the server gave no answer: they count as empty ones."""

    def identity(self, how: How) -> str:
        """What answers depend on besides their prompts: whoever else answers, or in another way, has another one."""
        named: dict[str, Any] = {"how": how, "seed": SEED}
        if self._config.endpoint:
            named |= {"served": self._config.what, "model": self._config.model}
            named |= {"extra": extra} if (extra := parse_extra(self._config.extra)) else {}
        else:
            named |= {"weights": self._open().digest, "dtype": self._open().dtype}
            if given := checkpoints.template_of(Path(self._config.what), self._config).given_values:
                named["template"] = given
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()

    def answers(self, prompts: Mapping[str, str], how: How, beside: Path) -> dict[str, str]:
        """Answers to prompts of one user message each, by name.

        beside: the file that they will stand in; what is drawn here is kept beside it until `settle` is called.
        """
        return self._served(prompts, how) if self._config.endpoint else self._drawn(prompts, how, beside)

    def _open(self) -> "Answerer":
        from engine.generate import Answerer  # it brings torch, which a served model does without

        if self._answerer is None:
            settings, c = checkpoints.template_of(Path(self._config.what), self._config), self.checkpoint
            self._answerer = Answerer.open(str(c.folder), settings=settings, base=c.base, base_dtype=c.base_dtype)
            if self._answerer.chat is None:
                raise InputError(
                    f"{self.checkpoint.folder}: has no tokenizer, but answers have to be text; give another model"
                )
        return self._answerer

    def _drawn(self, prompts: Mapping[str, str], how: How, beside: Path) -> dict[str, str]:
        from engine.generate import Sampling, draw

        answerer = self._open()
        ids = [answerer.prompt_ids(f"query {name}", [Message("user", text)]) for name, text in prompts.items()]
        sampling = Sampling(max_new_tokens=how.max_tokens, seed=SEED, temperature=how.temperature, top_p=how.top_p)
        with draw(answerer, ids, sampling, beside, name=self.checkpoint.name) as drawn:
            return {name: drawn.answers[i, 0]["response"] for i, name in enumerate(prompts)}

    def requests(self, prompts: Mapping[str, str], how: How) -> list[Request]:
        """What a served model is asked, prompt by prompt."""
        # Epochs may be served one after the other under one name: who is meant is part of what is asked.
        who = int.from_bytes(hashlib.sha256(self._config.what.encode()).digest()[:6])
        seen, made = Counter[str](), []
        for text in prompts.values():
            copy = seen[text] if how.temperature else 0  # drawn anew for each copy of a query, as it is here
            seen[text] += 1
            body: dict[str, Any] = {"model": self._config.model, "max_tokens": how.max_tokens, "seed": SEED + copy}
            body |= {"temperature": how.temperature, "top_p": how.top_p}
            body |= {"messages": [{"role": "user", "content": text}]} | parse_extra(self._config.extra)
            asked = {name: value for name, value in body.items() if value is not None}
            made.append(Request(asked, who, copy, as_is=True))
        return made

    def _served(self, prompts: Mapping[str, str], how: How) -> dict[str, str]:
        """Raises RunError where an answer is still to come."""
        client = client_of_model(self._config)
        endpoints = endpoints_of(client.endpoint, client)
        found = self._sent.ask(self.requests(prompts, how), client, endpoints, "answer")
        if missing := [a.fault for a in found if said(a) is None and is_open(a)]:
            raise RunError(
                f"{len(missing)} of {len(found)} answers are missing ({missing[0]}); the same command asks again"
            )
        self.unanswered = {name: a.fault for name, a in zip(prompts, found, strict=True) if said(a) is None}
        if self.unanswered:
            why = next(iter(self.unanswered.values()))
            cli.notify(
                f"the server gave no answer to {len(self.unanswered)} of {len(found)} prompts ({why}); they count as "
                "empty, and --ask-again asks for them again"
            )
        return {name: said(a) or "" for name, a in zip(prompts, found, strict=True)}


def check_same(
    path: Path, rows: Sequence[Mapping[str, Any]], field: str, prompts: Sequence[str], identity: str
) -> None:
    """Raises InputError unless rows hold answers to these prompts, in order, of that model."""
    if [row.get(field) for row in rows] != list(prompts) or any(row.get("model_sha256") != identity for row in rows):
        raise InputError(
            f"{path}: contains answers of another model, to other prompts, or sampled differently; give another "
            "--out, or remove it"
        )


def may_stand(rows: Sequence[Mapping[str, Any]], config: JudgedConfig) -> bool:
    """Whether answers that are written count: not where some lack, and --ask-again asks for them once more."""
    return not (config.ask_again and any("unanswered" in row for row in rows))


def without_answer(model: Model, name: str) -> dict[str, str]:
    """What a row says of a prompt that the server gave no answer to; nothing else."""
    return {"unanswered": model.unanswered[name]} if name in model.unanswered else {}


def settle(beside: Path) -> None:
    """The answers are written: what was kept beside them can go."""
    files.partial(beside).unlink(missing_ok=True)
