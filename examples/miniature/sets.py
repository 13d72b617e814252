"""The paper's four data sets in the miniature world, made by align's stages, over HTTP, from the same prompts
and with the same tiny target model (arXiv 2408.06266, section 3, equations 1 to 4).

clair                the target's answer and a minimal revision of it: wrong values replaced, missing facts put in
judge-on-policy      two answers of the target, the one with more right facts preferred
judge-off-policy     answers of other models, worse than the target, as UltraFeedback has them: the best over the worst
stronger-preferred   an answer of a model that is always right, in a way of its own, over the target's

Then a judge grades winners, losers and the target's own answers, which `apo_select` reads.
"""

import hashlib
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from examples import align
from examples.miniature import reviser, world
from examples.requests import parts, serve_models
from system import files

NAMES = ("clair", "judge-on-policy", "judge-off-policy", "stronger-preferred")
OTHERS_WRONG = (0.6, 0.7, 0.8, 0.9)
"""How many of their values the other models of the off-policy set get wrong; the target, sampled, some 40 %."""
MODELS = {"clair": "reviser", "judge-on-policy": "judge", "stronger-preferred": "stronger"}
"""Who is asked for a set, of those who are served."""
TEACHER = f"{shlex.quote(sys.executable)} -m examples.miniature.teachers --port {{port}}"
MAX_ANSWER_TOKENS = 64
SCORES = {"chosen_score", "rejected_score", "own_score"}  # the last is missing where the target's answer broke off


def make(
    base: Path, root: Path, questions: Sequence[world.Question], n: int, seed: int, names: Sequence[str] = NAMES
) -> dict[str, Path]:
    """Files of n pairs each with all three grades (fewer where the questions give fewer), by the data set's name."""
    found = {name: root / f"{name}.jsonl" for name in names}
    if not all(path.exists() for path in found.values()):
        for name, path in align.make_pairs(_recipe(base, root, questions, seed, names)).items():
            if not found[name].exists():  # a run's rows are not touched
                rows = [x for x in path.read_text().splitlines(keepends=True) if json.loads(x).keys() >= SCORES]
                files.write_text(found[name], "".join(rows[:n]))
    return found


def _recipe(
    base: Path, root: Path, questions: Sequence[world.Question], seed: int, names: Sequence[str]
) -> align.Recipe:
    """How align makes and grades the sets. root: its folder."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    prompts, judged = root / "prompts.jsonl", root / "judged.jsonl"
    files.write_rows(prompts, ({"prompt": q.prompt} for q in questions))
    files.write_rows(judged, ({"instruction": q.prompt, "completions": list(_others(q, rng))} for q in questions))
    asked = {"endpoint": ["{teacher}"], "target_max_tokens": str(MAX_ANSWER_TOKENS), "seed": str(seed)}
    revise: dict[str, dict[str, Any]] = {
        name: {"prompts": str(prompts), "model": MODELS[name], **asked} if name in MODELS else {"prompts": str(judged)}
        for name in names
    }
    revise["score"] = {"model": "judge", **asked}
    return align.Recipe(path=str(root), out=root, teacher=TEACHER, revise=revise, train={"model": str(base)})


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
