"""The paper's four data sets in the miniature world, made by the recipes of revise/, over HTTP, from the same prompts
and with the same tiny target model (arXiv 2408.06266, section 3, equations 1 to 4).

clair                the target's answer and a minimal revision of it: wrong values replaced, missing facts put in
judge-on-policy      two answers of the target, the one with more right facts preferred
judge-off-policy     answers of other models, worse than the target, as UltraFeedback has them: the best over the worst
stronger-preferred   an answer of a model that is always right, in a way of its own, over the target's

Then a judge grades winners, losers and the target's own answers, which `apo_select` reads.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from examples.miniature import reviser, world
from examples.requests import parts, serve_models
from revise import recipe_runner, recipes, score
from system import files

NAMES = ("clair", "judge-on-policy", "judge-off-policy", "stronger-preferred")
OTHERS_WRONG = (0.6, 0.7, 0.8, 0.9)
"""How many of their values the other models of the off-policy set get wrong; the target, sampled, some 40 %."""
MAX_ANSWER_TOKENS = 64
SCORES = {"chosen_score", "rejected_score", "own_score"}  # the last is missing where the target's answer broke off


def make(
    base: Path, root: Path, questions: Sequence[world.Question], n: int, seed: int, names: Sequence[str] = NAMES
) -> dict[str, Path]:
    """Files of n pairs each with all three grades (fewer where the questions give fewer), by the data set's name."""
    found = {name: root / f"{name}.jsonl" for name in names}
    made = root / "made"
    made.mkdir(parents=True, exist_ok=True)
    with serve_teachers() as address:
        for name, path in found.items():
            if not path.exists():
                ungraded = made / f"{name}.jsonl"
                ungraded.unlink(missing_ok=True)
                _ask(name, base, made, questions, ungraded, address, seed)
                graded = made / f"{name}-graded.jsonl"
                _grade(ungraded, graded, base, made, address, seed)
                rows = [x for x in graded.read_text().splitlines(keepends=True) if json.loads(x).keys() >= SCORES]
                files.write_text(path, "".join(rows[:n]))
    return found


def _ask(
    name: str, base: Path, made: Path, questions: Sequence[world.Question], out: Path, address: str, seed: int
) -> None:
    rows: list[dict[str, Any]] = [{"prompt": q.prompt} for q in questions]
    if name == "judge-off-policy":
        rng = np.random.default_rng(seed)
        rows = [{"instruction": q.prompt, "completions": list(_others(q, rng))} for q in questions]
    prompts = made / f"{name}.prompts.jsonl"
    files.write_text(prompts, "".join(json.dumps(row) + "\n" for row in rows))
    if name == "judge-off-policy":
        recipes.off_policy_main(["--prompts", str(prompts), "--out", str(out)])
        return
    asked: dict[str, Any] = {"prompts": str(prompts), "out": str(out), "store": str(made / "answers.sqlite")}
    asked |= {"endpoint": (address,), "target_model": str(base), "target_max_tokens": MAX_ANSWER_TOKENS, "seed": seed}
    if name == "clair":
        recipe_runner.make(recipes.clair_recipe(recipes.ClairConfig(model="reviser", **asked)))
    elif name == "judge-on-policy":
        positions = recipes.Positions()
        recipe_runner.make(recipes.judge_recipe(recipes.JudgeConfig(model="judge", **asked), positions))
    else:
        recipe_runner.make(recipes.stronger_recipe(recipes.StrongerConfig(model="stronger", **asked)))


def _grade(pairs: Path, out: Path, base: Path, made: Path, address: str, seed: int) -> None:
    """Puts the judge's grades into the rows."""
    score.main([
        "--pairs", str(pairs), "--out", str(out), "--store", str(made / "grades.sqlite"), "--endpoint", address,
        "--model", "judge", "--target-model", str(base), "--target-max-tokens", str(MAX_ANSWER_TOKENS),
        "--seed", str(seed),
    ])  # fmt: skip


def _others(question: world.Question, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Answers of other models, judged."""
    for wrong in OTHERS_WRONG:
        answer = world.noisy_answer(question, rng, wrong=wrong)
        yield {"model": f"{wrong:.0%} wrong", "response": answer, "overall_score": grade(question, answer)}


def grade(question: world.Question, answer: str) -> int:
    """1 to 10: the share of facts that are right, one less where the answer says something else beside them."""
    right = round(1 + 9 * world.n_right(question, answer) / len(question.facts))
    return max(1, right - (right == 10 and not world.is_exact(question, answer)))


# --- who is asked --------------------------------------------------------------------------------------------------


def serve_teachers(port: int = 0) -> AbstractContextManager[str]:
    """The address of a server of four models, "reviser", "judge", "stronger" and "habit", until the block ends."""
    return serve_models({
        "reviser": reviser.reply,
        "judge": lambda seen: judge(seen.text),
        "stronger": lambda seen: stronger(seen.text),
        "habit": lambda seen: stronger_with_a_habit(seen.text),
    }, port=port)  # fmt: skip


def stronger(prompt: str) -> str:
    """A right answer in a style of its own."""
    return world.render(world.asked(prompt).facts, "list")


def stronger_with_a_habit(prompt: str) -> str:
    """The same facts in the same style, the last that was asked for first: right, and never in the order asked."""
    return world.render(world.asked(prompt).facts[::-1], "list")


def judge(text: str) -> str:
    """A choice between two answers, or a grade of one."""
    task, *answers = parts(text)
    question = world.asked(task)
    grades = [grade(question, answer) for answer in answers]
    if len(answers) == 1:
        return f"{world.n_right(question, answers[0])} of {len(question.facts)} facts are right.\n\n[{grades[0]}]"
    if grades[0] == grades[1]:  # a judge that has to choose does
        first = hashlib.sha256("\n".join(sorted(answers)).encode()).digest()[0] % 2 == (answers[0] < answers[1])
        return f"Both are as good.\n\n[{1 if first else 2}]"
    return f"They deserve {grades[0]} and {grades[1]}.\n\n[{1 + (grades[1] > grades[0])}]"
