"""The judgments of a MixEval-Hard pass: the judge is tried on a plain query, then asked about every answer.

probe(judge, ...)      the right answer has to count as right, before thousands are paid for
judge_all(...)         every answer's score; what has none is asked for again, and then counts by the fallback
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from eval import answering, mixeval
from eval.judge_client import Judge
from eval.mixeval import SPLITS, Split, Wording
from revise.client import Answered, Request
from system import RunError

if TYPE_CHECKING:  # it imports this
    from eval.mixeval_run import MixEvalConfig

JUDGE_TOKENS, SEED = 999, answering.SEED
N_PROBES = 3  # answers of a judge to each kind of query

Entries = dict[Split, dict[str, dict[str, Any]]]


class Scored(NamedTuple):
    """What a version's queries came to."""

    scores: dict[Split, dict[str, float]]
    judged: dict[Split, dict[str, dict[str, Any]]]
    """Fields for upstream's files: judge_response, and judge_score or judge_option; reasoning, the judge's thoughts."""
    n_fallbacks: int
    """Queries without a judgment that can be read, which count by --fallback."""
    n_blocked: int = 0
    """Queries that the judge's server refuses: 0 for a free answer, a letter by --fallback for a choice."""
    n_unanswered: int = 0
    """Queries that the served model gave no answer to: empty ones."""

    @property
    def unjudged(self) -> list[str]:
        """Names of the queries that count without a judgment."""
        return [f"{split} {name}" for split, of in self.judged.items() for name, row in of.items() if "fallback" in row]

    @property
    def n_thoughts(self) -> int:
        """Judgments with thoughts before them."""
        return sum("reasoning" in row for of in self.judged.values() for row in of.values())


def body(messages: list[dict[str, str]], config: "MixEvalConfig") -> dict[str, Any]:
    """What the judge is sent, as upstream sends it."""
    made: dict[str, Any] = {"messages": messages, "max_tokens": JUDGE_TOKENS, "response_format": {"type": "text"}}
    return made if config.judge_temperature is None else made | {"temperature": config.judge_temperature}


def probe(judge: Judge, entries: Entries, wording: Wording, config: "MixEvalConfig") -> None:
    """Raises RunError where the judge does not find the right answer right: before thousands are paid for."""
    for split, queries in entries.items():
        entry = _probed(split, queries)
        right = _right(split, entry)
        requests = _probes(judge, split, entry, wording, config)
        found = judge.ask(requests)
        texts = [a.completion.text for a in found if a.completion]
        values = [value for text in texts if (value := _value(split, entry, text)) is not None]
        if not values:
            shown = repr(texts[0][:80]) if texts else found[0].fault
            why = f"none of {N_PROBES} answers to a {split} query has a score in [[ ]] ({shown})"
            raise judge.found_wanting(requests, f"{why}; take a model that follows instructions")
        if sum(values) / len(values) <= 0.5:
            why = f"it takes {right!r}, the right answer to a {split} query, for wrong ({texts[0][-80:]!r})"
            mend = "take a model that can judge, or, if it thinks first, a server with its reasoning parser"
            raise judge.found_wanting(requests, f"{why}; {mend}")


def probes(
    judge: Judge, entries: Entries, wording: Wording, config: "MixEvalConfig", n_passes: int
) -> Iterator[Request]:
    """What the judge is tried with in so many passes, each of which keeps answers of its own."""
    for number in range(n_passes):
        for split, queries in entries.items():
            yield from _probes(judge, split, _probed(split, queries), wording, config, number)


def _probes(
    judge: Judge, split: Split, entry: Mapping[str, Any], wording: Wording, config: "MixEvalConfig", number: int = 0
) -> list[Request]:
    messages = mixeval.judge_messages(entry, _right(split, entry), split, wording)
    return [judge.request(body(messages, config), -1 - i - number * N_PROBES) for i in range(N_PROBES)]


def _right(split: Split, entry: Mapping[str, Any]) -> str:
    """The right answer to a query."""
    return str(entry["target"][0]) if split == "free-form" else chr(ord("A") + entry["target"][0])


def _probed(split: Split, queries: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """A query to try a judge on: of a choice one whose right letter is A, which no list of options names last."""
    first = next(iter(queries.values()))
    return next((e for e in queries.values() if e["target"][0] == 0), first) if split == "multiple-choice" else first


def _value(split: Split, entry: Mapping[str, Any], text: str) -> float | None:
    """What a judgment makes of an answer, from 0 to 1; None where it cannot be read."""
    if split == "free-form":
        return mixeval.parse_score(text)
    letter = mixeval.parse_option(text)
    return None if letter is None else float(ord(letter) - ord("A") == entry["target"][0])


def judge_all(
    entries: Entries,
    responses: dict[Split, dict[str, str]],
    wording: Wording,
    config: "MixEvalConfig",
    judge: Judge,
) -> Scored:
    """Has every answer judged, those without a score again in the next round, and counts what is left by a fallback."""
    scored = Scored({s: {} for s in SPLITS}, {s: {} for s in SPLITS}, 0)
    last: dict[tuple[Split, str], Answered] = {}
    for number in range(config.rounds):
        requests = dict(_requests(entries, responses, wording, config, judge, scored, number))
        if not requests:
            break
        for (split, name), found in zip(requests, judge.ask(list(requests.values())), strict=True):
            _take(scored, split, name, entries[split][name], found)
            last[split, name] = found
    left: list[tuple[Split, str]] = [
        (split, name) for split, queries in entries.items() for name in queries if name not in scored.scores[split]
    ]
    states = [row.state if (row := last[key].row) else "failed" for key in left]
    if n_failed := states.count("failed"):
        why = next(last[key].fault for key, state in zip(left, states, strict=True) if state == "failed")
        raise RunError(f"{n_failed} judgments are missing ({why}); the same command asks again")
    for (split, name), state in zip(left, states, strict=True):
        is_zero = split == "free-form" and state == "refused"
        _fall_back(scored, split, name, entries[split][name], "zero" if is_zero else config.fallback)
    n_blocked = states.count("refused")
    return scored._replace(n_fallbacks=len(left) - n_blocked, n_blocked=n_blocked)


def _requests(
    entries: Entries,
    responses: dict[Split, dict[str, str]],
    wording: Wording,
    config: "MixEvalConfig",
    judge: Judge,
    scored: Scored,
    number: int,
) -> Iterator[tuple[tuple[Split, str], Request]]:
    """Round `number` of questions, of those that have no score yet."""
    n_equal: dict[str, int] = defaultdict(int)
    for split, queries in entries.items():
        for name, entry in queries.items():
            messages = mixeval.judge_messages(entry, responses[split][name], split, wording)
            request = judge.request(body(messages, config), number)
            if not config.dedupe:
                n_equal[request.key] += 1
                request = request._replace(occurrence=n_equal[request.key] - 1)
            if name not in scored.scores[split]:
                yield (split, name), request


def _take(scored: Scored, split: Split, name: str, entry: Mapping[str, Any], found: Answered) -> None:
    """Keeps a judgment if it can be read."""
    if found.completion is None:
        return
    text, thoughts = found.completion.text, found.completion.reasoning
    if (value := _value(split, entry, text)) is None:
        return
    scored.scores[split][name] = value
    said = {"judge_score": value} if split == "free-form" else {"judge_option": mixeval.parse_option(text)}
    scored.judged[split][name] = {"judge_response": text} | said | ({"reasoning": thoughts} if thoughts else {})


def _fall_back(scored: Scored, split: Split, name: str, entry: Mapping[str, Any], fallback: str) -> None:
    rng = random.Random(f"{SEED} {split} {name}")
    if split == "free-form":
        score = round(rng.random(), 1) if fallback == "random" else 0.0
        scored.scores[split][name] = score
        scored.judged[split][name] = {"judge_response": None, "judge_score": score, "fallback": fallback}
        return
    letters = [chr(ord("A") + i) for i in range(len(entry["options"]))]
    letter = rng.choice(letters) if fallback == "random" else None
    scored.scores[split][name] = float(letter is not None and letters.index(letter) == entry["target"][0])
    scored.judged[split][name] = {"judge_response": None, "judge_option": letter, "fallback": fallback}
