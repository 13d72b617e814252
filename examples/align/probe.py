"""One short question to every server that a recipe asks, before anything is spent: address, key and model's name hold.

A server that the recipe starts itself is started for it, and ended again.
"""

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data.rows import find_model
from eval import alpacaeval_run, mixeval_run
from eval.judge_client import client_of_judge
from examples.align import flags
from examples.align.recipe import RECIPES, Recipe, asks_teacher, with_teacher
from examples.align.served import served
from examples.align.stages import Start
from examples.children import Children
from examples.requests import TRIED
from revise.client import (
    NO_KEY,
    REWARD_PATH,
    ClientConfig,
    Request,
    answer_all,
    answered,
    endpoints_of,
    open_store,
    parse_extra,
)
from system import InputError, RunError, Stopped

MOST_TOKENS = 16
ATTEMPTS = 2


class Probe(NamedTuple):
    """Who is asked, for what."""

    where: str
    """The section that says so."""
    client: ClientConfig
    extra: dict[str, Any]
    path: str = "chat/completions"
    flag: str = "--endpoint"


def ask_all(recipe: Recipe, children: Children, *, asks_model: bool = True) -> None:
    """Asks each server once. recipe: with nothing but what is still to be asked. asks_model: whether the model is, too.
    Raises InputError for all that do not answer, Stopped after a signal.
    """
    faults, known = list[str](), set[tuple[str, ...]]()
    teacher = recipe.teacher if asks_teacher(*recipe.revise.values(), *recipe.eval.values()) else None
    log = recipe.out / "logs/check.log"
    with contextlib.ExitStack() as running:
        address = running.enter_context(served(teacher, {}, children, log, os.environ)).address if teacher else ""
        for probe in _probes(recipe, address):
            for endpoint in endpoints_of(probe.client.endpoint, probe.client, flag=probe.flag):
                who = (endpoint.origin, probe.client.model, probe.path, json.dumps(probe.extra, sort_keys=True))
                if who not in known:
                    known.add(who)
                    faults += _ask(probe, endpoint, recipe)
        if not faults:
            faults += _try_judges(recipe, address)
    if recipe.serve is not None and asks_model:
        first = Start(str(find_model(recipe.model)), recipe.training.get("adapter"))
        command = recipe.server_of(first.answers) or recipe.serve
        named = {"checkpoint": first.answers, "base": first.model}
        with served(command, named, children, log, os.environ) as server:
            client = ClientConfig(store="", endpoint=(server.address,), model=server.name, key_env=(NO_KEY,))
            probe = Probe("serve", client, {})
            faults += _ask(probe, endpoints_of(client.endpoint, client)[0], recipe)
    if faults:
        raise InputError("\n".join(faults))


def _first_round(recipe: Recipe, teacher: str) -> Recipe:
    """A recipe as it is in the first round, with the teacher's address; who is asked in the others is the same."""
    now = recipe.of_round(1)
    return dataclasses.replace(
        now, revise={k: with_teacher(v, teacher) for k, v in now.revise.items()},
        eval={k: with_teacher(v, teacher) for k, v in now.eval.items()},
    )  # fmt: skip


def _try_judges(recipe: Recipe, teacher: str) -> list[str]:
    """What is wrong with the benchmarks' judges, who are asked what has a known answer: as it is asked later, with
    log-probs where they are needed.
    """
    now, faults = _first_round(recipe, teacher), list[str]()
    for name, try_judge in (("mixeval", mixeval_run.try_judge), ("alpacaeval", alpacaeval_run.try_judge)):
        if name in now.eval:
            try:
                try_judge(flags.of_evaluation(now, name, str(now.out)))
            except Stopped:
                raise
            except (RunError, InputError) as fault:
                faults.append(f"{recipe.path}: eval: {name}: {fault}")
    return faults


def _probes(recipe: Recipe, teacher: str) -> Iterator[Probe]:
    """Everybody who is asked."""
    now = _first_round(recipe, teacher)
    for name, (command, _) in now.sets.items():
        if command is not RECIPES["judge-off-policy"]:
            config = flags.of_set(now, name, out=now.out / "pairs.jsonl", model=now.model)
            drawn = {"temperature": config.temperature, "top_p": config.top_p}
            yield Probe(f"revise: {name}", config, drawn | parse_extra(config.extra))
    if "score" in now.revise:
        config = flags.of_score(now, now.out / "pairs.jsonl", now.out / "scored.jsonl", now.model)
        path = REWARD_PATH if config.reward else "chat/completions"
        drawn = {} if config.reward else {"temperature": config.temperature}
        yield Probe("revise: score", config, drawn | parse_extra(config.extra), path)
    for name in ("mixeval", "alpacaeval"):
        if name in now.eval:
            config = flags.of_evaluation(now, name, str(now.out))
            client, extra = client_of_judge(config), parse_extra(config.judge_extra)
            yield Probe(f"eval: {name}", client, extra, flag="--judge-endpoint")
    if now.eval.get("advise", {}).get("judge_endpoint"):
        config = flags.of_evaluation(now, "advise", str(now.out))
        client = ClientConfig(
            store=str(config.store), endpoint=config.judge_endpoint, model=config.judge, key_env=config.judge_key_env,
            header=config.judge_header,
        )  # fmt: skip
        drawn = {"temperature": config.judge_temperature} | parse_extra(config.judge_extra)
        yield Probe("eval: advise", client, drawn, flag="--judge-endpoint")


def _ask(probe: Probe, endpoint: Any, recipe: Recipe) -> list[str]:
    """What is wrong with a server; nothing where it answers, however."""
    messages = [{"role": "user", "content": TRIED}]
    if probe.path == REWARD_PATH:
        body: dict[str, Any] = {"messages": [*messages, {"role": "assistant", "content": "Yes."}]}
    else:
        body = {"messages": messages, "max_tokens": MOST_TOKENS}
    body = {"model": probe.client.model} | body | probe.extra
    request = Request({name: value for name, value in body.items() if value is not None}, path=probe.path, as_is=True)
    with tempfile.TemporaryDirectory() as folder, open_store(Path(folder) / "probe.sqlite") as store:
        client = dataclasses.replace(
            probe.client, store=str(store.path), max_attempts=ATTEMPTS, patience=60.0, go_on=True, max_cost=None,
            max_requests=None,
        )  # fmt: skip
        try:
            answer_all([request], store, client, [endpoint], purpose="check", n_requests=1)
        except Stopped:
            raise
        except (RunError, InputError) as fault:
            return [f"{recipe.path}: {probe.where}: {fault}"]
        found = answered(store, request, goes_on=True)
        if found.row is None or found.row.state in ("failed", "refused"):
            return [f"{recipe.path}: {probe.where}: {endpoint.origin} does not answer as asked ({found.fault})"]
    return []
