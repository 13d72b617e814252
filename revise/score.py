"""Scores of winners, losers and the model's own answers, put into the rows of a file of pairs.

    python -m revise score --pairs pairs.jsonl --out scored.jsonl --store answers.sqlite --endpoint URL --model NAME

A judge grades each answer from 1 to 10 (revise/templates/score.txt), several times with --n-grades, or a reward model
gives its number (--reward: vLLM's /pooling). One scorer, one scale: chosen_score, rejected_score and own_score, which
apo_select and `eval advise` read (docs/objectives.md). The own answer is the loser where a recipe made it so, the mean
of both where both were the model's, and else drawn from --target-model or --target-endpoint.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

from data.rows import ReadingSettings, Record, parse_record, rows_of
from revise import judge
from revise.client import (
    CHARACTERS_PER_TOKEN,
    REWARD_PATH,
    SCORER,
    ClientConfig,
    Completion,
    Estimate,
    Request,
    Store,
    answer_all,
    answered,
    endpoints_of,
    estimate,
    open_store,
    parse_extra,
    told,
)
from revise.handing_on import check_worded, handed_on
from revise.prompts import Item
from revise.recipe_runner import check_asked
from revise.target import Target, TargetConfig
from revise.templates import Template, read_template, task_of
from system import InputError, RunError, cli, files, list_faults
from system.flags import PathText, check_above_zero

EXAMPLE = (
    "python -m revise score --pairs pairs.jsonl --out scored.jsonl --store answers.sqlite"
    " --endpoint http://localhost:8000/v1 --model judge"
)
OWN_IS_LOSER = ("clair", "stronger-preferred")
OWN_ARE_BOTH = ("judge-on-policy",)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(TargetConfig, ClientConfig, ReadingSettings):
    """Add scores of the winner, the loser and the model's own answer to each row of a file of pairs."""

    pairs: PathText
    """Pairs to score: any source that engine.train takes."""
    out: PathText
    """File for the same rows with chosen_score, rejected_score and own_score."""
    endpoint: tuple[str, ...] = ()
    """Base URL of the judge's OpenAI-compatible server, or of the reward model's with --reward, such as
    http://localhost:8000/v1. Several URLs share the requests. It has to be given."""
    model: str = ""
    """Name of the model at --endpoint. It has to be given."""
    target_model: PathText | None = None
    """Checkpoint folder or hub id of the model to align, to sample an answer for own_score. Pairs made by revise clair,
    judge-on-policy or stronger-preferred need none, since they contain the model's own answer. Unset: other pairs get
    no own_score, unless --target-endpoint is given."""
    target_max_tokens: int = 512
    """Maximum number of tokens of an answer that is sampled from the target model; see also --cut-answers."""
    cut_answers: Literal["again", "aside", "keep"] = "again"
    """What to do when an answer that is sampled from the target model reaches --target-max-tokens. again: sample once
    more with twice the limit; if that is truncated too, the row gets no own_score. aside: the row gets no own_score.
    keep: score the truncated answer."""
    reward: bool = False
    """Score with a reward model that --endpoint serves (vLLM's /pooling) instead of asking a judge for grades. Not with
    --n-grades above 1."""
    template: PathText | None = None
    """File with another prompt template for the judge, in which <TASK> and <STUDENT_SOLUTION> are replaced by the
    texts. Unset: this project's own."""
    n_grades: int = 1
    """Number of grades (1 to 10) to ask the judge for per answer; the score is their mean."""
    temperature: float = 0.7
    """Sampling temperature of the judge."""
    max_tokens: int = 1024
    """Maximum number of tokens of an answer of the judge."""
    extra: str | None = None
    """JSON object to merge into each request to --model; null removes a field."""
    seed: int = 0
    """Random seed for answers that are sampled from the target model on this machine."""
    config: PathText | None = None
    """YAML file with settings under the names of the flags. Flags on the command line win over it."""

    def __post_init__(self) -> None:
        for part in (ClientConfig, TargetConfig, ReadingSettings):
            part.__post_init__(self)
        check_asked(self)
        parse_extra(self.extra)
        if self.reward and (self.api != "chat" or self.stream):
            raise InputError(
                "--api and --stream are for a judge; a reward model's /pooling has neither: leave them out"
            )
        check_above_zero(self, "n_grades")
        if self.reward and self.n_grades > 1:
            raise InputError(
                f"--n-grades: {self.n_grades} has to be 1 with --reward, since a reward model always gives the same "
                "number"
            )


class Scored(NamedTuple):
    """A row and what is to be scored in it."""

    item: Item
    """Its prompt, for own answers that are drawn."""
    record: Record
    origin: str | None
    """The recipe that made it; None where it does not say."""


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(ScoreConfig, argv, command="python -m revise score", example=EXAMPLE)
    files.check_new_file(Path(config.out))
    endpoints = endpoints_of(config.endpoint, config)
    template, target, n = _opened(config)
    with open_store(Path(config.store)) as store:
        n_sent = 0
        if target is not None and not config.dry_run:
            drawn = target.fill(lambda: (s.item for s in _rows(config) if s.origin is None), store, n)
            n_sent = drawn.n_sent
            if drawn.said:
                cli.notify(drawn.said)
        wanted = (r for s in _rows(config) for r in _requests(s, config, template, target, store))
        if config.dry_run:
            print(told(_estimates(config, template, target, store), config))
            return
        n_requests = 2 * n * config.n_grades
        later = config.after(n_sent)
        answer_all(wanted, store, later, endpoints, purpose="score", role=SCORER, n_requests=n_requests)
        rows = (_without_scores(s.item.row) | _scores(s, config, template, target, store) for s in _rows(config))
        n_bare, n_thoughts = _write(rows, Path(config.out))
    print(f"{n - n_bare:,} of {n:,} pairs are scored: {config.out}", file=sys.stderr)
    if n_thoughts:
        said = "the judge's thoughts were cut off before its grade was read; they are kept as scorer_reasoning"
        print(f"in {n_thoughts:,} rows {said}", file=sys.stderr)
    if n_bare:
        raise RunError(
            f"{n_bare} rows lack the score of an answer; run again with another --out to repeat requests that failed, "
            "and with a larger --n-grades where grades could not be read"
        )


def foresee(config: ScoreConfig) -> list[Estimate]:
    """Lines of --dry-run, each with the most dollars that it can cost; nothing is sent. Raises InputError."""
    endpoints_of(config.endpoint, config)
    template, target, _ = _opened(config)
    with open_store(Path(config.store)) as store:
        return _estimates(config, template, target, store)


def _opened(config: ScoreConfig) -> tuple[Template, Target | None, int]:
    """The judge's wording, who gives own answers, and how many pairs there are, checked. Raises InputError."""
    template = read_template(config.template, "score", judge.SCORE_SLOTS)
    target = Target(config, config, n=1, seed=config.seed) if config.target_model or config.target_endpoint else None
    return template, target, _check(config)


def _write(rows: Iterable[dict[str, Any]], out: Path) -> tuple[int, int]:
    """Writes the rows; gives how many lack a score of one of their answers, and how many have the judge's thoughts."""
    n_bare = n_thoughts = 0

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal n_bare, n_thoughts
        for row in rows:
            n_bare += not {"chosen_score", "rejected_score"} <= row.keys()
            n_thoughts += "scorer_reasoning" in row
            yield row

    files.write_rows(out, counted())
    return n_bare, n_thoughts


OLD_SCORES = (
    "chosen_score", "rejected_score", "own_score", "score_chosen", "score_rejected", "score_own", "scorer",
    "scorer_reasoning",
)  # fmt: skip


def _without_scores(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what another scorer has said: scores of two in one row mean nothing."""
    return {name: value for name, value in row.items() if name not in OLD_SCORES}


def _check(config: ScoreConfig) -> int:
    """The number of rows. Raises InputError where one of them is no pair of texts."""
    faults, n = [], 0
    for _, found in _found(config):
        n += 1
        faults += [str(found)] if isinstance(found, InputError) else []
    if faults:
        raise list_faults(faults, n, mend="fix or delete them")
    if not n:
        raise InputError(f"{config.pairs}: holds no rows; give a file of pairs")
    return n


def _rows(config: ScoreConfig) -> Iterator[Scored]:
    return (found for _, found in _found(config) if isinstance(found, Scored))


def _found(config: ScoreConfig) -> Iterator[tuple[str, Scored | InputError]]:
    for number, (location, row) in enumerate(rows_of(config.pairs, config.reading)):
        try:
            if isinstance(row, InputError):
                raise row
            yield location, _scored(number, location, row, config)
        except InputError as fault:
            yield location, fault


def _scored(number: int, location: str, row: dict[str, Any], config: ScoreConfig) -> Scored:
    record = parse_record(row, location, reading=config.reading)
    try:
        json.dumps(row)
    except TypeError as fault:
        raise InputError(f"{location}: a value that JSON cannot hold ({fault}); leave its column out") from None
    if record.form != "pairs" or record.is_tokenised:
        raise InputError(f"{location}: not a pair of texts, and only those can be scored; take the row out")
    if any(len(response) > 1 or any(m.tool_calls for m in response) for response in record.conversations):
        raise InputError(f"{location}: an answer has tool calls, but only text can be scored; take the row out")
    if config.reward:
        handed_on(location, record.context)
    else:
        check_worded(location, record.messages, record.context)
    provenance = row.get("provenance")
    origin = provenance.get("recipe") if isinstance(provenance, dict) else None
    is_known = origin in (*OWN_IS_LOSER, *OWN_ARE_BOTH)
    return Scored(
        Item(number, location, record.messages, row, 0, record.context), record, str(origin) if is_known else None
    )


def _requests(s: Scored, config: ScoreConfig, template: Template, target: Target | None, store: Store) -> list[Request]:
    texts = [*s.record.texts, *_own(s, target, store)]
    return [request for text in texts for request in _grades(s.item, text, config, template)]


def _own(s: Scored, target: Target | None, store: Store) -> list[str]:
    """The model's own answer, where it was drawn for this."""
    if target is None or s.origin is not None:
        return []
    return [a.completion.text.strip() for a in target.answers(s.item, store) if a.completion]


def _grades(item: Item, text: str, config: ScoreConfig, template: Template) -> list[Request]:
    if config.reward:
        body: dict[str, Any] = {
            "model": config.model,
            "messages": [*item.messages, {"role": "assistant", "content": text}],
            **handed_on(item.location, item.context),
        }
        return [Request(_merged(body, config), path=REWARD_PATH)]
    asked = judge.score_request(task_of(item.prompt), text, template)
    body = {"model": config.model, "messages": [{"role": "user", "content": asked}]}
    body |= {"temperature": config.temperature, "max_tokens": config.max_tokens}
    return [Request(_merged(body, config), sample, check=_not_graded) for sample in range(config.n_grades)]


def _not_graded(answer: Completion) -> str | None:
    """Why an answer is no grade."""
    try:
        judge.parse_score(answer.text)
    except ValueError as reason:
        return str(reason)
    return None


def _merged(body: dict[str, Any], config: ScoreConfig) -> dict[str, Any]:
    return {name: value for name, value in (body | parse_extra(config.extra)).items() if value is not None}


def _scores(s: Scored, config: ScoreConfig, template: Template, target: Target | None, store: Store) -> dict[str, Any]:
    """Fields for the row: those scores that there are."""

    thoughts: list[str] = []

    def score(text: str) -> float | None:
        grades = []
        for request in _grades(s.item, text, config, template):
            found = answered(store, request, config.accept_finish_reason).completion
            if found is not None:
                thoughts.extend([found.reasoning] if found.reasoning else [])
                try:
                    grades.append(float(found.text) if config.reward else judge.parse_score(found.text))
                except ValueError:
                    continue
        return fmean(grades) if grades else None

    chosen, rejected = (score(text) for text in s.record.texts)
    if s.origin in OWN_IS_LOSER:
        own = rejected
    elif s.origin in OWN_ARE_BOTH:
        own = None if chosen is None or rejected is None else (chosen + rejected) / 2
    else:
        own = next((score(text) for text in _own(s, target, store)), None)
    made = {"chosen_score": chosen, "rejected_score": rejected, "own_score": own}
    found = {name: value for name, value in made.items() if value is not None} | {"scorer": config.model}
    return found | ({"scorer_reasoning": thoughts} if thoughts else {})


def _estimates(config: ScoreConfig, template: Template, target: Target | None, store: Store) -> list[Estimate]:
    """What a run would send, and the most that it can cost: own answers still to be drawn are as long as may be."""
    known = store.states()
    longest = "x" * ((config.target_max_tokens if target is None else target.most_tokens) * CHARACTERS_PER_TOKEN)

    def foreseen() -> Iterator[Request]:
        for s in _rows(config):
            yield from _requests(s, config, template, target, store)
            if target is not None and s.origin is None and not _own(s, target, store):
                yield from _grades(s.item, f"{longest}{s.item.number}", config, template)

    stages = [estimate("score", foreseen(), known, config)]
    if target is not None:
        stages = [*target.estimates(lambda: (s.item for s in _rows(config) if s.origin is None), store), *stages]
    return stages
