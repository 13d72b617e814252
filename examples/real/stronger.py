"""A stand-in for a stronger model: sentences that were written by hand for the study, put together so that every rule
is kept, in words of its own.

It knows nothing of a topic but its name. What it stands for is an answer that keeps the rule, is whole and well formed,
and owes nothing to what the model would have written; its style is its own, and nobody asked for it.
"""

import hashlib
import re

from examples.real.task import QUESTIONS, Task

SENTENCES = (
    "People have known {} for a very long time.",
    "There is more to {} than most of us notice at first.",
    "Many of us meet {} nearly every day.",
    "Children often ask good questions about {}.",
    "It takes some patience to get to know {} well.",
    "Old books have a surprising amount to say about {}.",
    "Those who work with {} tend to talk about small details.",
    "A walk through any town gives a reason to think about {}.",
    "My own view is that {} deserve a second look.",
    "Much of what we say about {} we learned from our parents.",
    "A quiet hour is enough to begin with {}.",
    "One can spend a whole life with {} and still be glad of it.",
)
"""Without a comma, a digit or a word of a rule."""
TWICE = "I find it {0} to ask how {0} {1} can be to someone else."


def answer(task: Task) -> str:
    """An answer that keeps the task's rule; the same to the same prompt."""
    topic = topic_of(task.prompt)
    luck = hashlib.sha256(task.prompt.encode()).digest()
    first = luck[0] % len(SENTENCES)
    second = (first + 1 + luck[1] % (len(SENTENCES) - 1)) % len(SENTENCES)
    both = [SENTENCES[i].format(topic) for i in (first, second)]
    return _KEEPS[task.kind](both, topic, task.value)


def topic_of(prompt: str) -> str:
    """What a question is about. Raises ValueError where it is none of the questions."""
    for question in QUESTIONS:
        before, _, after = question.partition("{}")
        if found := re.match(rf"{re.escape(before)}(.+?){re.escape(after)}(?: |$)", prompt):
            return found[1]
    raise ValueError(f"no question in {prompt!r}")


def _lowered(text: str) -> str:
    return text if text.startswith("I ") else text[0].lower() + text[1:]


_KEEPS = {
    "lower case": lambda both, topic, value: " ".join(both).lower(),
    "no commas": lambda both, topic, value: " ".join(both),
    "ending": lambda both, topic, value: f"{' '.join(both)} {value}",
    "beginning": lambda both, topic, value: f"{value}, {_lowered(both[0])} {both[1]}",
    "quotes": lambda both, topic, value: f'"{" ".join(both)}"',
    "one sentence": lambda both, topic, value: both[0],
    "twice": lambda both, topic, value: f"{both[0]} {TWICE.format(value, topic)}",
    "exclamation": lambda both, topic, value: " ".join(both).replace(".", "!"),
    "list": lambda both, topic, value: "\n".join(f"- {sentence}" for sentence in both),
}
