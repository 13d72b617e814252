"""How the checkpoints of a run answer questions of the field guide that no model was trained on.

    python -m examples.miniature.score runs/paper/seed-0/clair/apo_zero

Written into the run's eval/scores.jsonl, as any evaluator does; what is there already is left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from data.text import Chat, Message, Tokenizer, stop_ids
from engine import weights
from engine.generate import Sampling, generate
from eval import advise, checkpoints, scores
from examples.miniature import model, world
from system import InputError, cli
from system.flags import PathText

EXAMPLE = "python -m examples.miniature.score runs/paper/seed-0/clair/apo_zero"
BENCHMARK = "field guide"
MAX_ANSWER_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Score every checkpoint of a run of the miniature examples, and the model that it began with, on questions about
    animals (the field guide) that no model was trained on."""

    run: tyro.conf.Positional[PathText]
    """Folder of a run."""
    n: int = 200
    """Number of questions, of the 500 that no model is trained on."""
    skip: int = 0
    """Number of the 500 questions to skip before the first one asked."""
    config: PathText | None = None
    """YAML file with settings under the names of the flags. Flags on the command line win over it."""

    def __post_init__(self) -> None:
        if not Path(self.run).is_dir():
            raise InputError(f"{self.run}: no such folder; give the folder of a run")
        if self.n < 1 or self.skip < 0 or self.skip + self.n > model.N_TEST:
            raise InputError(f"--n and --skip: there are {model.N_TEST} questions; take fewer")


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(ScoreConfig, argv, command="python -m examples.miniature.score", example=EXAMPLE)
    run, test = Path(config.run), model.split_questions()[2][config.skip : config.skip + config.n]
    known = {line["checkpoint"] for line in scores.read(run / "eval" / scores.NAME) if line["benchmark"] == BENCHMARK}
    found = {
        c.name: measure(c.folder, test, temperature=1.0)
        for c in checkpoints.find(run, with_base=True)
        if c.name not in known
    }
    write_scores(run, found, skipped=config.skip)


@dataclass(frozen=True)
class Score:
    """How a model answers questions that no model was trained on."""

    exact: float
    """Share of answers that tell all that was asked, right, and nothing else."""
    facts: float
    """Share of facts right."""
    n: int
    answers: list[str]

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `exact`."""
        return advise.wilson(self.exact * self.n, self.n)[1:]


def answer(folder: Path, questions: Sequence[world.Question], *, temperature: float, seed: int) -> list[str]:
    """A model's answers, one to each question."""
    chat = Chat(Tokenizer(folder))
    prompts = [chat.prompt_ids([Message("user", q.prompt)]) for q in questions]
    sampling = Sampling(max_new_tokens=MAX_ANSWER_TOKENS, temperature=temperature, seed=seed, batch_size=128)
    answers = generate(weights.load(folder), prompts, sampling, stop_ids(folder, chat))
    return [chat.tokenizer.decode(a.ids) for a in answers]


def measure(folder: Path, questions: Sequence[world.Question], *, temperature: float) -> Score:
    """A model on unseen questions."""
    answers = answer(folder, questions, temperature=temperature, seed=1)
    both = list(zip(questions, answers, strict=True))
    n_facts = sum(len(q.facts) for q in questions)
    exact, right = sum(world.is_exact(q, a) for q, a in both), sum(world.n_right(q, a) for q, a in both)
    return Score(exact / len(both), right / n_facts, len(both), answers)


def write_scores(run: Path, found: dict[str, Score], *, skipped: int = 0) -> None:
    """What the miniature's own evaluator has found, as any evaluator writes it."""
    after = f" after {skipped} others" if skipped else ""
    lines = [
        {"checkpoint": name, "benchmark": BENCHMARK, "version": f"{score.n} unseen questions{after}", "metric": metric}
        | {
            "value": value,
            "stderr": (value * (1 - value) / n) ** 0.5,
            "n": score.n,
            "judge": "a program",
            "temperature": 1,
        }
        for name, score in found.items()
        for metric, value, n in (("overall", score.exact, score.n), ("facts right", score.facts, 4 * score.n))
    ]
    scores.write(run / "eval" / scores.NAME, lines)


if __name__ == "__main__":
    cli.run(main)
