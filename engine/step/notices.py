"""What is said of rows before weights are read: how much each counts, and what an objective makes of their mix."""

from collections.abc import Sequence

from data.rows import Example
from engine.step.objective import Objective, Term
from engine.step.steps import Steps
from system import InputError

IDEAL = 1.0, 4 / 3
"""What desirable rows should count for, against the undesirable ones: arXiv 2402.01306."""


def notices(objective: Objective, examples: Sequence[Example], steps: Steps) -> list[str]:
    """Sentences for the user: steps of one prompt alone where KL is estimated across prompts, and classes of labelled
    rows that count unequally. examples: in the objective's form.
    """
    made = [_one_prompt(objective, steps)] if objective.needs_mismatched else []
    made += [_imbalance(term, examples) for term in objective.terms if len(_class_weights(term)) == 2]
    return [sentence for sentence in made if sentence]


def _one_prompt(objective: Objective, steps: Steps) -> str:
    n, total = steps.n_of_one_prompt(), len(steps)
    if not n:
        return ""
    if n == total:
        return (
            f"{objective.name}: every step has rows of one prompt alone, so that no prompt can be put before another "
            "one's response, and the KL estimate is always 0; raise --batch-size, or give rows of more prompts"
        )
    return (
        f"{objective.name}: {n} of {total} steps {'has' if n == 1 else 'have'} rows of one prompt alone, so that no "
        "prompt can be put before another one's response, and the KL estimate is 0 there"
    )


def _class_weights(term: Term) -> list[float]:
    """Of desirable and undesirable rows; none where the objective has no such."""
    names = ("desirable_weight", "undesirable_weight")
    return [term.arguments[name] for name in names if name in term.arguments]


def _imbalance(term: Term, examples: Sequence[Example]) -> str:
    name, (of_desirable, of_undesirable) = term.loss.name, _class_weights(term)
    counts = [sum(weight_of(e) for e in examples if e.label is label) for label in (True, False)]
    rows = [sum(e.label is label for e in examples) for label in (True, False)]
    if not sum(rows) or not of_desirable or not of_undesirable:
        return ""  # of pairs, which are taken apart evenly; or a class that is meant to count for nothing
    said = f"{name}: {rows[0]} desirable and {rows[1]} undesirable rows"
    if not all(counts):
        missing = "undesirable" if counts[0] else "desirable"
        return f"{said}: no row is {missing}, so that the likelihood of all rows moves one way"
    ratio = of_desirable * counts[0] / (of_undesirable * counts[1])
    least, most = IDEAL
    if 0.99 * least <= ratio <= 1.01 * most:
        return ""
    balance = counts[0] / counts[1]
    ups = " to ".join(f"{share / balance * of_undesirable:.3g}" for share in IDEAL)
    downs = " to ".join(f"{of_desirable * balance / share:.3g}" for share in reversed(IDEAL))
    return (
        f"{said}, of weights {of_desirable:g} and {of_undesirable:g}: they count {ratio:.3g} to 1, and between 1 to 1 "
        f"and 4 to 3 is advised (arXiv 2402.01306): --{name}.desirable_weight {ups}, or --{name}.undesirable_weight "
        f"{downs}"
    )


def weight_of(example: Example) -> float:
    """How much a row counts."""
    return 1.0 if example.ratings.weight is None else example.ratings.weight


def weights_report(objective: Objective, examples: Sequence[Example]) -> str:
    """What rows' weights come to, in words; empty where no row has one. Raises InputError where all are 0."""
    given = [e for e in examples if e.ratings.weight is not None]
    if not given:
        return ""
    weights = [weight_of(e) for e in examples]
    if not any(weights):
        raise InputError(
            f"{examples[0].location}: its weight is 0 and so is every other row's, which leaves nothing to train on; "
            "fix them, or ignore them by --ignore-columns weight"
        )
    said = f"rows weigh {sum(weights) / len(weights):.4g} on average ({min(weights):g} to {max(weights):g})"
    said += f", {len(examples) - len(given)} without a weight count 1" if len(given) < len(examples) else ""
    if zeros := [e for e in given if e.ratings.weight == 0]:
        said += f", {len(zeros)} of weight 0 move nothing (the first is {zeros[0].location})"
    own = [t.loss.name for t in objective.terms if t.loss.weighs_rows]
    return said + (f", as {', '.join(own)} itself makes of it" if own else "")
