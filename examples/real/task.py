"""Questions with a rule that a program can check: what the real model is to become better at.

    What is bread good for? Do not use any commas.

Nine kinds of rules. Of each a program can say how far an answer keeps it, and repair an answer that does not with as
few changes as it takes. Topics are split in three: those of HELDOUT_TOPICS appear in no training prompt, and what is
chosen by looking, such as a learning rate, is chosen on DEVELOPMENT_TOPICS, which are in no pair and in no test.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

TOPICS = (
    "bread", "rain", "bicycles", "honey", "libraries", "salt", "trains", "sleep", "gardens", "maps", "soap", "coffee",
    "candles", "mirrors", "paper", "bridges", "dogs", "onions", "clocks", "glass", "milk", "umbrellas", "chess", "wool",
    "windmills", "pencils", "mountains", "eggs", "music", "ice", "shoes", "forests", "potatoes", "radios", "cats",
    "sand", "lemons", "museums", "tea", "ladders", "spoons", "rivers", "keys", "carrots", "buttons", "swimming",
    "bees", "stamps", "cheese", "snow", "blankets", "markets", "oil", "drums",
)  # fmt: skip
HELDOUT_TOPICS = (
    "apples", "boats", "the moon", "windows", "horses", "rice", "lamps", "walking", "books", "wood", "kites",
    "tomatoes", "bells", "the sea", "hats", "butter", "owls", "bottles", "dancing", "roses", "batteries", "soup",
    "islands", "tents",
)  # fmt: skip
DEVELOPMENT_TOPICS = (
    "ink", "ovens", "parrots", "pepper", "tunnels", "violins", "grapes", "stairs", "deserts", "ropes", "pumpkins",
    "telescopes", "lighthouses", "squirrels", "scarves", "elevators", "mushrooms", "fountains", "marbles", "cinnamon",
    "tractors", "haircuts", "clouds", "baskets",
)  # fmt: skip
QUESTIONS = (
    "Why do people like {}?",
    "Describe {} in a few words.",
    "Write a short text about {}.",
    "Tell me about {} in one or two sentences.",
    "Name one thing that everyone should know about {}.",
    "What is special about {}? Be brief.",
)


class Kind(NamedTuple):
    """A kind of rule."""

    wordings: tuple[str, ...]
    """How a prompt says it; {} stands for the rule's value."""
    values: tuple[str, ...]
    """Words or sentences that the rule may name; one empty one where it names none."""
    degree: Callable[[str, str], float]
    """How far an answer keeps the rule with that value, from 0 to 1: 1 alone is keeping it."""
    repair: Callable[[str, str], str]
    """The answer with the rule kept, as little changed as can be."""


class Task(NamedTuple):
    """A prompt and the rule in it."""

    prompt: str
    kind: str
    value: str

    def degree(self, answer: str) -> float:
        """How far an answer keeps the rule, from 0 to 1; an answer without a letter keeps none."""
        answer = answer.strip()
        return KINDS[self.kind].degree(answer, self.value) if re.search(r"[A-Za-z]", answer) else 0.0

    def is_kept(self, answer: str) -> bool:
        """Whether an answer keeps the rule."""
        return self.degree(answer) == 1.0

    def repair(self, answer: str) -> str | None:
        """The smallest repair; None where there is none: the answer breaks off, repeats itself, or has no words."""
        answer = answer.strip()
        if self.is_kept(answer):
            return answer
        if is_broken(answer) or not re.search(r"""[.!?"')]$""", answer) or not re.search(r"[A-Za-z]", answer):
            return None
        repaired = KINDS[self.kind].repair(answer, self.value)
        return repaired if self.is_kept(repaired) else None


def sentences(text: str) -> list[str]:
    """The sentences of a text; a list's "1." begins one and is none."""
    found: list[str] = []
    for part in re.split(r"(?:(?<=[.!?])|(?<=[.!?][\"')]))\s+|\n+", text.strip()):
        if found and re.fullmatch(r"\W*\d{1,2}[.)]", found[-1]):
            found[-1] += f" {part}"
        elif part.strip():
            found.append(part)
    return found


def is_broken(answer: str) -> bool:
    """Whether an answer says nothing, or the same four words three times."""
    words = re.findall(r"\w+", answer.lower())
    fours = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return not words or any(fours.count(four) >= 3 for four in set(fours))


# --- the rules -----------------------------------------------------------------------------------------------------


def _lower(answer: str, value: str) -> float:
    letters = [c for c in answer if c.isalpha()]
    return sum(not c.isupper() for c in letters) / len(letters)


def _commas(answer: str, value: str) -> float:
    return 1 / (1 + answer.count(","))


def _ending(answer: str, value: str) -> float:
    return 1.0 if answer.endswith(value) else 0.5 if value.rstrip(".!").lower() in answer.lower() else 0.0


def _beginning(answer: str, value: str) -> float:
    if re.match(rf"{value}\b", answer):
        return 1.0
    return 0.5 if value.lower() in answer.lower() else 0.0


def _begin(answer: str, value: str) -> str:
    if said := re.match(rf"\W*{value}\b", answer, re.IGNORECASE):
        return value + answer[said.end() :]
    first = answer.split(" ", 1)[0]
    keeps_case = first == "I" or first[:2] == "I'" or first[1:].lower() != first[1:]
    return f"{value}, {answer if keeps_case else answer[0].lower() + answer[1:]}"


def _quotes(answer: str, value: str) -> float:
    if len(answer) > 2 and answer[0] == answer[-1] == '"':
        return 1.0 if '"' not in answer[1:-1] else 0.75
    return 0.5 * ('"' in (answer[0], answer[-1]))


def _quote(answer: str, value: str) -> str:
    inner = answer[1:-1] if len(answer) > 2 and answer[0] == answer[-1] == '"' else answer
    return '"' + inner.replace('"', "'") + '"'


def _one_sentence(answer: str, value: str) -> float:
    return 1 / len(sentences(answer)) if answer[-1] in ".!?\"')" else 0.0


def _first_sentence(answer: str, value: str) -> str:
    first = sentences(answer)[0].rstrip()
    return first if first[-1] in ".!?" else first.rstrip(":;,- ") + "."


def _count(answer: str, value: str) -> int:
    return len(re.findall(rf"\b{value}\b", answer, re.IGNORECASE))


def _say_twice(answer: str, value: str) -> str:
    more = f"It is {value}." if _count(answer, value) else f"It is {value}, very {value}."
    return f"{answer} {more}"


_SENTENCE_END = re.compile(r"(?:(?<=[^\W\d])|(?<=\w\d)|(?<=[)\"'%]))[.?]+(?=[\"')]*(?:\s|$))")


def _exclaimed(answer: str, value: str) -> float:
    n_others = len(_SENTENCE_END.findall(answer))
    n_marks = len(re.findall(r"!(?=[\"')]*(?:\s|$))", answer))
    ends = 1 if answer.rstrip("\"')").endswith("!") else 0
    return n_marks / (n_marks + n_others) if ends else 0.5 * n_marks / (n_marks + n_others + 1)


def _exclaim(answer: str, value: str) -> str:
    made = _SENTENCE_END.sub("!", answer)
    return made if made.rstrip("\"')").endswith("!") else made.rstrip(":;,.") + "!"


def _listed(answer: str, value: str) -> float:
    lines = [line for line in answer.split("\n") if line.strip()]
    return sum(line.startswith("- ") for line in lines) / len(lines)


def _list(answer: str, value: str) -> str:
    lines = [line for line in answer.split("\n") if line.strip()]
    parts = lines if len(lines) > 1 else sentences(answer)
    return "\n".join("- " + re.sub(r"^\s*(?:[-*•]+|\d{1,2}[.)])\s*", "", part) for part in parts)


KINDS = {
    "lower case": Kind(
        ("Write everything in lower case.", "Use lower case letters only."), ("",), _lower, lambda a, _: a.lower()
    ),
    "no commas": Kind(
        ("Do not use any commas.", "Your answer must not contain a comma."),
        ("",),
        _commas,
        lambda a, _: a.replace(",", ""),
    ),
    "ending": Kind(
        ('End your answer with the sentence "{}"', 'The last sentence of your answer has to be "{}"'),
        ("That is all.", "I hope this helps.", "Now you know.", "Thank you for asking."),
        _ending,
        lambda a, value: f"{a} {value}",
    ),
    "beginning": Kind(
        ('Begin your answer with the word "{}".', 'The first word of your answer has to be "{}".'),
        ("Honestly", "Well", "Simply", "Certainly", "Basically"),
        _beginning,
        _begin,
    ),
    "quotes": Kind(
        ("Put your whole answer in double quotes.", "Wrap your answer in double quotation marks."),
        ("",),
        _quotes,
        _quote,
    ),
    "one sentence": Kind(
        ("Answer in exactly one sentence.", "Your answer has to be a single sentence."),
        ("",),
        _one_sentence,
        _first_sentence,
    ),
    "twice": Kind(
        ('Use the word "{}" at least twice.', 'The word "{}" has to appear at least two times.'),
        ("useful", "common", "important", "simple", "good"),
        lambda a, value: min(1.0, _count(a, value) / 2),
        _say_twice,
    ),
    "exclamation": Kind(
        ("End every sentence with an exclamation mark.", "Each sentence has to end with an exclamation mark."),
        ("",),
        _exclaimed,
        _exclaim,
    ),
    "list": Kind(
        (
            'Write the answer as a list in which every line begins with "- ".',
            'Begin every line of the answer with "- ".',
        ),
        ("",),
        _listed,
        _list,
    ),
}


def tasks(topics: Sequence[str], n: int, seed: int) -> list[Task]:
    """n different tasks on these topics, of each kind as many, in an order drawn by the seed."""
    rng = np.random.default_rng(seed)
    kinds = [list(KINDS)[i % len(KINDS)] for i in range(n)]
    made: dict[str, Task] = {}
    for i in rng.permutation(n).tolist():
        while True:
            name = kinds[i]
            kind, topic = KINDS[name], topics[int(rng.integers(len(topics)))]
            value = kind.values[int(rng.integers(len(kind.values)))]
            question = QUESTIONS[int(rng.integers(len(QUESTIONS)))].format(topic)
            wording = kind.wordings[int(rng.integers(len(kind.wordings)))].format(value)
            prompt = f"{question} {wording}"
            if prompt not in made:
                made[prompt] = Task(prompt, name, value)
                break
    return list(made.values())


def asked(prompt: str) -> Task:
    """The task that a prompt puts. Raises ValueError where there is none."""
    for name, kind in KINDS.items():
        for value in kind.values:
            if any(prompt.endswith(wording.format(value)) for wording in kind.wordings):
                return Task(prompt, name, value)
    raise ValueError(f"no rule in {prompt!r}")
