"""What a model does with tasks on topics that it was not trained on, and with ordinary text.

Answers are drawn at temperature 0.7 and greedily, and kept: a run that was stopped goes on. A program says which of
them keep their rule. Whether anything else broke: answers that say nothing or the same again and again, and the
log-likelihood of ordinary answers, which are the base model's own to questions without a rule.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from data.rows import Example, PromptRow, load_rows
from data.text import Message
from engine.generate import Answerer, Sampling, draw
from engine.score import score_under
from eval import advise
from examples.real import task
from examples.real.task import Task

TEMPERATURES = {"sampled": 0.7, "greedy": 0.0}
TOP_P = 0.95
MAX_ANSWER_TOKENS = 64
N_ORDINARY = 64


class Share(NamedTuple):
    """How many of n."""

    n_kept: int
    n: int

    @property
    def value(self) -> float:
        """The share."""
        return self.n_kept / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % Wilson interval."""
        return advise.wilson(self.n_kept, self.n)[1:]

    @property
    def stderr(self) -> float:
        """Its standard error."""
        return (self.value * (1 - self.value) / self.n) ** 0.5

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


class Score(NamedTuple):
    """A model's answers to the test."""

    kept: Share
    kinds: dict[str, Share]
    """The same for each kind of rule."""
    broken: Share
    """Answers that say nothing, or repeat themselves."""
    sound: Share
    """Answers that keep their rule and are not broken."""
    characters: float
    """Mean length."""
    answers: list[str]


def answer(
    folder: Path,
    prompts: Sequence[str],
    temperature: float,
    out: Path,
    *,
    seed: int = 1,
    top_p: float = TOP_P,
    dtype: Literal["float32", "bfloat16"] | None = None,
) -> list[str]:
    """A model's answers to prompts, one each; read from `out` where they are there. top_p: of sampled ones. dtype: that
    computes; None: what suits the device.
    """
    if not out.exists():
        answerer = Answerer.open(str(folder), dtype)
        rows = [PromptRow(f"prompt {i}", (Message("user", prompt),), {}) for i, prompt in enumerate(prompts, 1)]
        ids = [answerer.prompt_ids(row.location, row.prompt) for row in rows]
        sampling = Sampling(
            max_new_tokens=MAX_ANSWER_TOKENS, temperature=temperature, top_p=top_p if temperature else 1.0, seed=seed
        )
        with draw(answerer, ids, sampling, out, out.stem) as drawn:
            drawn.finish(out, rows)
    return [row["response"] for row in load_rows(out)]


def score(tasks: Sequence[Task], answers: Sequence[str]) -> Score:
    """Which answers keep their rule."""
    kept = [t.is_kept(a) for t, a in zip(tasks, answers, strict=True)]
    broken = [task.is_broken(a) for a in answers]
    of_kind = {name: [k for t, k in zip(tasks, kept, strict=True) if t.kind == name] for name in task.KINDS}
    return Score(
        kept=share(kept),
        kinds={name: share(found) for name, found in of_kind.items() if found},
        broken=share(broken),
        sound=share([k and not b for k, b in zip(kept, broken, strict=True)]),
        characters=sum(map(len, answers)) / len(answers),
        answers=list(answers),
    )


def share(found: Iterable[bool]) -> Share:
    """How many of them are so."""
    found = list(found)
    return Share(sum(found), len(found))


def counts(scores: Mapping[str, Score]) -> dict[str, dict[str, Share]]:
    """What of scores goes into a record: by how answers were drawn, how many keep their rule, do so without repeating
    themselves, and are broken. A Share is [how many, of how many] in JSON.
    """
    return {how: {"kept": s.kept, "sound": s.sound, "broken": s.broken} for how, s in scores.items()}


def mean_and_error(change: np.ndarray) -> tuple[float, float]:
    """The mean of differences [n], and half the width of its 95 % interval."""
    return float(change.mean()), float(1.96 * change.std(ddof=1) / len(change) ** 0.5)


def questions(topics: Sequence[str]) -> list[str]:
    """Ordinary questions on these topics, without a rule."""
    every = [question.format(topic) for topic in topics for question in task.QUESTIONS]
    drawn = np.random.default_rng(2).choice(len(every), N_ORDINARY, replace=False)
    return [every[i] for i in sorted(drawn.tolist())]


def ordinary(
    base: Path,
    out: Path,
    topics: Sequence[str] = task.HELDOUT_TOPICS,
    *,
    temperature: float = TEMPERATURES["sampled"],
    top_p: float = TOP_P,
) -> list[Example]:
    """Ordinary questions on these topics and the base model's answers to them, as token ids."""
    prompts = questions(topics)
    answers = answer(base, prompts, temperature, out, top_p=top_p)
    answerer = Answerer.open(str(base))
    assert answerer.chat is not None  # the real model has a tokenizer
    made = []
    for i, (prompt, text) in enumerate(zip(prompts, answers, strict=True), 1):
        ids = answerer.prompt_ids(f"prompt {i}", (Message("user", prompt),))
        said = answerer.chat.tokenizer.encode([text])[0]
        made.append(Example(f"{out}:{i}", np.array(ids, np.int32), (np.array(said, np.int32),)))
    return made


def log_likelihood(folder: Path, examples: Sequence[Example]) -> np.ndarray:
    """Nats per token of each example's response under a model, [n]."""
    found = np.array([logps.item() for logps in score_under(folder, examples, micro_tokens=1024)])
    return found / np.array([e.lengths[0] for e in examples])
