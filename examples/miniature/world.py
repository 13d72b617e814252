"""The field guide: a small world in which every answer can be checked.

Sixteen animals have legs, food, a home and a cover. A question asks for four of these facts, of one or two animals;
an answer gives them in one of three phrasings. The corpus that a model learns from gets 30 % of the values wrong and
leaves a few facts out: the model comes to know the facts (its likeliest answer is right) but answers like its corpus
when it is sampled, which is the situation of an instruction model before alignment.
"""

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

ANIMALS = {  # legs, food, home, cover
    "otter": ("four", "fish", "rivers", "fur"),
    "heron": ("two", "frogs", "marshes", "feathers"),
    "beetle": ("six", "leaves", "gardens", "shell"),
    "spider": ("eight", "flies", "barns", "hair"),
    "adder": ("no", "mice", "heaths", "scales"),
    "badger": ("four", "worms", "woods", "fur"),
    "owl": ("two", "mice", "barns", "feathers"),
    "ant": ("six", "seeds", "hills", "shell"),
    "scorpion": ("eight", "flies", "deserts", "shell"),
    "trout": ("no", "worms", "rivers", "scales"),
    "goat": ("four", "leaves", "hills", "hair"),
    "finch": ("two", "seeds", "gardens", "feathers"),
    "cricket": ("six", "leaves", "heaths", "shell"),
    "lizard": ("four", "flies", "deserts", "scales"),
    "newt": ("four", "worms", "marshes", "skin"),
    "crow": ("two", "seeds", "woods", "feathers"),
}
ATTRIBUTES = ("legs", "food", "home", "cover")
VALUES = {a: sorted({facts[i] for facts in ANIMALS.values()}) for i, a in enumerate(ATTRIBUTES)}
QUESTIONS = (
    "Tell me of the {animals}: {attributes}.",
    "The {animals}: {attributes}?",
    "What of the {animals}? Say {attributes}.",
)
PHRASINGS = ("prose", "list", "chat")
VERBS = {"legs": "has {} legs", "food": "eats {}", "home": "lives in {}", "cover": "wears {}"}

WRONG = 0.30
OMITTED = 0.02


class Fact(NamedTuple):
    """What one clause of an answer says."""

    animal: str
    attribute: str
    value: str


class Question(NamedTuple):
    """A prompt and the facts that answer it, in order."""

    prompt: str
    facts: tuple[Fact, ...]


def truth(animal: str, attribute: str) -> Fact:
    """The right fact."""
    return Fact(animal, attribute, ANIMALS[animal][ATTRIBUTES.index(attribute)])


def questions(n: int, seed: int) -> list[Question]:
    """n different questions of all that there are, drawn without replacement: the same seed gives the same order, so
    that questions(n)[:m] and questions(n)[m:] never meet.
    """
    asked = [((animal,), order) for animal in ANIMALS for order in itertools.permutations(ATTRIBUTES)]
    pairs = itertools.permutations(ANIMALS, 2)
    asked += [(animals, order) for animals in pairs for order in itertools.permutations(ATTRIBUTES, 2)]  # pyright: ignore[reportArgumentType]
    rng = np.random.default_rng(seed)
    made = []
    for i in rng.permutation(len(asked))[:n]:
        animals, attributes = asked[i]
        form = QUESTIONS[rng.integers(len(QUESTIONS))]
        text = form.format(animals=" and the ".join(animals), attributes=", ".join(attributes))
        made.append(Question(text[0].upper() + text[1:], tuple(truth(a, b) for a in animals for b in attributes)))
    return made


def asked(prompt: str) -> Question:
    """The question that a prompt puts."""
    words = re.findall(r"\w+", prompt.lower())
    animals, attributes = [w for w in words if w in ANIMALS], [w for w in words if w in ATTRIBUTES]
    return Question(prompt, tuple(truth(a, b) for a in animals for b in attributes))


def render(facts: Sequence[Fact], phrasing: str) -> str:
    """Facts as an answer."""
    sentences = []
    for animal, group in itertools.groupby(facts, key=lambda fact: fact.animal):
        told = [(fact.attribute, fact.value) for fact in group]
        if phrasing == "prose":
            sentences.append(f"The {animal} {', '.join(VERBS[a].format(v) for a, v in told)}.")
        elif phrasing == "list":
            sentences.append(f"{animal}: {'; '.join(f'{a} {v}' for a, v in told)}.")
        else:
            sentences.append(f"Well, the {animal}, its {' and its '.join(f'{a}: {v}' for a, v in told)}.")
    return " ".join(sentences)


_CLAUSES = {  # how each phrasing says a fact, and what stands before, between and after the facts of an animal
    "prose": (r"The (\w+) ", "|".join(VERBS[a].format(rf"(?P<{a}>\w+)") for a in ATTRIBUTES), ", "),
    "list": (r"(\w+): ", "|".join(rf"{a} (?P<{a}>\w+)" for a in ATTRIBUTES), "; "),
    "chat": (r"Well, the (\w+), its ", "|".join(rf"{a}: (?P<{a}>\w+)" for a in ATTRIBUTES), " and its "),
}


def parse(answer: str) -> tuple[list[Fact], str] | None:
    """The facts that an answer states and its phrasing; None where it is not an answer of this world."""
    for phrasing, (opening, clause, between) in _CLAUSES.items():
        facts: list[Fact] = []
        for sentence in re.split(r"(?<=\.) ", answer):
            head = re.match(opening, sentence)
            if head is None or not sentence.endswith("."):
                break
            for part in sentence[head.end() : -1].split(between):
                match = re.fullmatch(clause, part)
                if match is None or match.lastgroup is None:
                    break
                facts.append(Fact(head[1], match.lastgroup, match[match.lastgroup]))
            else:
                continue
            break
        else:
            return facts, phrasing
    return None


def n_right(question: Question, answer: str) -> int:
    """How many of the facts asked for an answer gets right; a fact that is told twice counts by its first telling."""
    parsed = parse(answer)
    told = {(f.animal, f.attribute): f.value for f in reversed(parsed[0])} if parsed else {}
    return sum(told.get((f.animal, f.attribute)) == f.value for f in question.facts)


def is_exact(question: Question, answer: str) -> bool:
    """Whether an answer tells all that was asked, right and in order, and nothing else."""
    parsed = parse(answer)
    return parsed is not None and tuple(parsed[0]) == question.facts


def revise(question: Question, answer: str) -> str | None:
    """The smallest repair: wrong values replaced in place, missing facts inserted where they belong.

    None where the answer cannot be repaired so: it is no answer of this world, or tells things not asked for.
    """
    parsed = parse(answer)
    if parsed is None:
        return None
    told = [(f.animal, f.attribute) for f in parsed[0]]
    asked = iter((f.animal, f.attribute) for f in question.facts)
    return (
        render(question.facts, parsed[1]) if all(t in asked for t in told) else None
    )  # a subsequence of what was asked


def noisy_answer(question: Question, rng: np.random.Generator, *, wrong: float = WRONG) -> str:
    """An answer of the corpus: any phrasing, a share of the values wrong, a few facts left out."""
    facts = []
    for fact in question.facts:
        if rng.random() < OMITTED and len(question.facts) > 1:
            continue
        others = [v for v in VALUES[fact.attribute] if v != fact.value]
        facts.append(fact._replace(value=str(rng.choice(others))) if rng.random() < wrong else fact)
    return render(facts or question.facts, PHRASINGS[rng.integers(len(PHRASINGS))])
