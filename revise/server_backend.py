"""Answers of a served model for who knows no client: what `engine.generate --endpoint` finds by the entry point in
setup.cfg. This file imports nothing of the engine; all that it needs is an argument.

Answers go into a store, so that a run that is stopped goes on.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from data.rows import PromptRow
from data.text import Message
from revise.client import (
    Answered,
    ClientConfig,
    Request,
    answer_all,
    answered,
    endpoints_of,
    is_cut,
    is_open,
    open_store,
    parse_extra,
    said,
)
from revise.handing_on import handed_on
from system import RunError


def answers(
    prompts: Sequence[PromptRow],
    *,
    store: str,
    endpoint: tuple[str, ...],
    model: str,
    key_env: str,
    concurrency: int,
    header: tuple[str, ...] = (),
    extra: str | None = None,
    api: Literal["chat", "responses"] = "chat",
    stream: bool = False,
    accept_finish_reason: tuple[str, ...] = (),
    max_answer_mb: float = 8.0,
    read_timeout: float = 300.0,
    go_on: bool = False,
    ask_again: bool,
    n: int,
    seed: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    stop: tuple[str, ...],
) -> Iterator[tuple[str | None, str]]:
    """(text, why it ended) of each of n samples, prompt by prompt; (None, why) of what the server has refused, or
    answered without a text. Raises RunError where an answer is still to come.

    store: the file of answers. Sample i has the seed `seed` + i; top_k 0 is all tokens, and is not sent, for it is
    vLLM's and not of OpenAI's interface. Every other field is said, since vLLM else takes the checkpoint's own.
    """
    client = ClientConfig(
        store=store,
        endpoint=endpoint,
        model=model,
        key_env=(key_env,),
        concurrency=concurrency,
        header=header,
        api=api,
        stream=stream,
        accept_finish_reason=accept_finish_reason,
        max_answer_mb=max_answer_mb,
        read_timeout=read_timeout,
        go_on=go_on,
        ask_again=ask_again,
    )
    merged = parse_extra(extra)
    sampling: dict[str, Any] = {"max_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    sampling |= {"top_k": top_k} if top_k else {}
    sampling |= {"stop": list(stop)} if stop else {}
    requests = [
        Request({name: value for name, value in (body | merged).items() if value is not None}, i, as_is=True)
        for row in prompts
        for beside in [handed_on(row.location, row.context)]
        for i in range(n)
        for body in [{"model": model, "messages": _messages(row), **sampling, **beside, "seed": seed + i}]
    ]
    with open_store(Path(client.store)) as opened:
        endpoints = endpoints_of(client.endpoint, client)
        answer_all(requests, opened, client, endpoints, purpose="answer", n_requests=len(requests))
        found = [answered(opened, request, accept_finish_reason, goes_on=go_on) for request in requests]
    if missing := [a.fault for a in found if said(a) is None and is_open(a)]:
        raise RunError(
            f"{len(missing)} of {len(found)} answers are missing ({missing[0]}); the same command asks again"
        )
    return ((text := said(a), a.fault if text is None else _finish(a)) for a in found)


def _messages(row: PromptRow) -> list[dict[str, Any]]:
    return [m.fields() for m in row.prompt if isinstance(m, Message)]


def _finish(found: Answered) -> str:
    return "length" if found.completion and is_cut(found.completion.finish) else "stop"
