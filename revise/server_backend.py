"""Answers of a served model for engine.generate: what its --endpoint means (the entry point in setup.cfg).

Answers go into a store beside the file that is asked for, so that a run that is stopped goes on.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.rows import PromptRow
from data.text import Message
from revise import wire
from revise.client import Answered, ClientConfig, Request, answer_all, answered, endpoints_of, is_open, open_store, said
from system import RunError

if TYPE_CHECKING:
    from engine.generate import GenerateConfig


def answers(config: "GenerateConfig", prompts: Sequence[PromptRow]) -> Iterator[tuple[str | None, str]]:
    """(text, why it ended) of each sample, prompt by prompt; (None, why) of what the server has refused, or answered
    without a text. Raises RunError where an answer is still to come.
    """
    client = ClientConfig(
        store=f"{config.out}.sqlite",
        endpoint=config.endpoint,
        model=config.model,
        key_env=(config.key_env,),
        concurrency=config.concurrency,
        ask_again=config.ask_again,
    )
    requests = [request for row in prompts for request in _requests(config, row)]
    with open_store(Path(client.store)) as store:
        endpoints = endpoints_of(client.endpoint, client)
        answer_all(requests, store, client, endpoints, purpose="answer", n_requests=len(requests))
        found = [answered(store, request) for request in requests]
    if missing := [a.fault for a in found if said(a) is None and is_open(a)]:
        raise RunError(
            f"{len(missing)} of {len(found)} answers are missing ({missing[0]}); the same command asks again"
        )
    return ((text := said(a), a.fault if text is None else _finish(a)) for a in found)


def _finish(found: Answered) -> str:
    return "length" if found.completion and found.completion.finish in wire.TRUNCATED else "stop"


def _requests(config: "GenerateConfig", row: PromptRow) -> Iterator[Request]:
    """What is asked for one prompt: every sampling field is said, since vLLM else takes the checkpoint's own."""
    messages = [m._asdict() for m in row.prompt if isinstance(m, Message)]
    body: dict[str, Any] = {"model": config.model, "messages": messages, "max_tokens": config.max_new_tokens}
    body |= {"temperature": config.temperature, "top_p": config.top_p}
    body |= {"top_k": config.top_k} if config.top_k else {}  # not of OpenAI's interface: vLLM's
    body |= {"stop": list(config.stop)} if config.stop else {}
    for sample in range(config.n):
        yield Request(body | {"seed": config.seed + sample}, sample)
