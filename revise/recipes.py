"""The four ways to make preference pairs that arXiv 2408.06266 compares (section 3, equations 1 to 4).

clair                the model's own answer, and a minimal revision of it          equation 1
judge-on-policy      two answers of the model, the better one by a judge           equation 2
judge-off-policy     answers of other models that are judged already               equation 3
stronger-preferred   the answer of a stronger model over the model's own           equation 4
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import tyro

from data.rows import Reading, Tie, parse_record
from revise import clair, judge, pairs, recipe_runner
from revise.client import PAIR_JUDGE, Completion, Request
from revise.handing_on import handed_on
from revise.pairs import Made, Pair, Rejected
from revise.prompts import Item, Prompts, PromptsConfig, Side
from revise.recipe_runner import Recipe, RecipeConfig, instruction, question, wording_facts
from revise.templates import read_template, task_of
from system import InputError, cli
from system.flags import Ignored, PathText, Refused

_TAIL = (
    "--prompts prompts.jsonl --out pairs.jsonl --store answers.sqlite"
    " --endpoint http://localhost:8000/v1 --model gpt-4-turbo"
)
CLAIR_EXAMPLE = f"python -m revise clair {_TAIL} --target-model path/to/llama"
JUDGE_EXAMPLE = f"python -m revise judge-on-policy {_TAIL} --target-model path/to/llama"
OFF_POLICY_EXAMPLE = "python -m revise judge-off-policy --prompts ultrafeedback.jsonl --out pairs.jsonl"
STRONGER_EXAMPLE = f"python -m revise stronger-preferred {_TAIL} --target-model path/to/llama"


def _check_ratios(low: float | None, high: float | None) -> None:
    if not all(math.isfinite(bound) for bound in (low, high) if bound is not None):
        raise InputError("--min-length-ratio and --max-length-ratio have to be numbers")
    if (low is not None and low < 0) or (high is not None and high <= 0) or (low or 0) > (high or float("inf")):
        raise InputError(f"--min-length-ratio and --max-length-ratio: {low} and {high} leave nothing between them")


# --- CLAIR ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ClairConfig(RecipeConfig):
    """Make pairs by revising the model's own answers as little as possible: the revision becomes the chosen response,
    the original answer the rejected one."""

    model: str = ""
    """Name of the reviser at --endpoint. Always required, also with --batch-write and --batch-read."""
    template: PathText | None = None
    """Prompt template for the reviser: paper for the authors' own, or a file in which <TASK> and <STUDENT_SOLUTION> are
    replaced by the texts and an optional <DEGREE> by what --strength and --keep-length ask for. Unset: this project's
    own, not the paper's."""
    strength: Literal["light", "standard", "strong"] = "standard"
    """How much a revision may change: the one thing that matters most (light), all that is wrong or unclear (standard),
    or whatever can be better (strong). light and strong need a template that contains <DEGREE>; the template paper
    does not."""
    keep_length: bool = False
    """Ask for revisions that are about as long as the answers."""
    min_length_ratio: float = clair.MIN_LENGTH_RATIO
    """Shortest revision to accept, as a share of the characters of the answer that it revises."""
    max_length_ratio: float = clair.MAX_LENGTH_RATIO
    """Longest revision to accept, as a share of the characters of the answer that it revises."""
    allow_allusions: bool = False
    """Keep revisions that mention that they are one, such as "I have corrected ...". By default they are rejected."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ratios(self.min_length_ratio, self.max_length_ratio)


def clair_recipe(config: ClairConfig) -> Recipe:
    """Equation 1. Raises InputError where the template cannot be used."""
    template = read_template(config.template, "clair", clair.SLOTS, clair.OPTIONAL_SLOTS)
    has_degree = "DEGREE" in template.parts[1::2]
    if not has_degree and (config.strength != ClairConfig.strength or config.keep_length):
        raise InputError(f"{config.template}: has no <DEGREE>, which --strength and --keep-length need; add it")

    def ask(item: Item, own: list[str]) -> list[Request]:
        text = clair.request(
            task_of(item.prompt), own[0], template, strength=config.strength, keep_length=config.keep_length
        )
        return [instruction(text, config, occurrence=item.occurrence)]

    def pair(item: Item, own: list[str], answers: list[Completion]) -> Pair:
        try:
            reasoning, revision = clair.parse(answers[0].text, student_solution=own[0])
            clair.check(
                revision,
                own[0],
                task_of(item.prompt),
                min_ratio=config.min_length_ratio,
                max_ratio=config.max_length_ratio,
                may_allude=config.allow_allusions,
            )
        except ValueError as reason:
            raise Rejected(str(reason)) from None
        return Pair(revision, own[0], reasoning)

    settings: dict[str, Any] = wording_facts(template.text, config.template or "clair")
    settings |= {"strength": config.strength, "keep_length": config.keep_length} if has_degree else {}
    settings |= {"min_length_ratio": config.min_length_ratio, "max_length_ratio": config.max_length_ratio}
    settings |= {"allow_allusions": config.allow_allusions}
    return Recipe("clair", config, 1, ask, pair, settings)


def clair_main(argv: Sequence[str]) -> None:
    """The command."""
    recipe_runner.make(
        clair_recipe(cli.parse(ClairConfig, argv, command="python -m revise clair", example=CLAIR_EXAMPLE))
    )


# --- a judge of the model's own answers ----------------------------------------------------------------------------

ONE_ANSWER = (
    "gives one own answer to a prompt, but two are judged; leave it out, and give --target-model or --target-endpoint, "
    'or rows with "responses"'
)


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(RecipeConfig):
    """Make pairs by sampling two answers of the model to each prompt and letting a judge choose the better one."""

    seed: int = 0
    """Random seed for the prompts that --sample draws, for answers sampled on this machine, and for the order in which
    the judge sees the two answers. It is not sent to servers."""
    model: str = ""
    """Name of the judge at --endpoint. Always required, also with --batch-write and --batch-read."""
    keep_reasoning: bool = False
    """Write the target model's reasoning into each response as reasoning_content, to train a reasoning model."""
    template: PathText | None = None
    """Prompt template for the judge: paper for the authors' own, or a file in which <TASK>, <STUDENT_SOLUTION_1> and
    <STUDENT_SOLUTION_2> are replaced by the texts. Unset: this project's own."""
    both_orders: float = 0.1
    """Share of pairs (0 to 1) to judge in both orders, to measure how much the order matters. If the two verdicts
    differ, the pair is left out (written to .rejected.jsonl). The other pairs are judged once, in a random order."""
    response_from: Annotated[Side | None, Refused(ONE_ANSWER), tyro.conf.Suppress] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.response_from is not None:
            raise InputError(f"--response-from: {ONE_ANSWER}")
        if not 0 <= self.both_orders <= 1:
            raise InputError(f"--both-orders: {self.both_orders} has to be between 0 and 1")


class Positions:
    """How often a judge takes what it is shown first, and says the same in both orders."""

    def __init__(self) -> None:
        self.n_judgments = self.n_first = self.n_both = self.n_same = 0

    def add(self, choices: Sequence[int], winners: Sequence[int]) -> None:
        """choices: the indices that won; winners: which of the two answers that is."""
        self.n_judgments += len(choices)
        self.n_first += sum(choice == 1 for choice in choices)
        self.n_both += len(choices) == 2
        self.n_same += len(choices) == 2 and winners[0] == winners[1]

    def sentence(self) -> str | None:
        """What was found; None where there is nothing to say."""
        if not self.n_judgments:
            return None
        said = f"the answer shown first won {self.n_first / self.n_judgments:.1%} of {self.n_judgments:,} judgments"
        if self.n_both:
            said += f"; of {self.n_both:,} pairs judged in both orders {self.n_same / self.n_both:.1%} had one winner"
        return said


def judge_recipe(config: JudgeConfig, positions: Positions) -> Recipe:
    """Equation 2. positions: is told of every judgment. Raises InputError where the template cannot be used."""
    template = read_template(config.template, "judge", judge.CHOICE_SLOTS)

    def orders(item: Item) -> list[bool]:
        """Whether the two answers are swapped, in each question about an item."""
        swap, both = np.random.default_rng((config.seed, item.number)).random(2).tolist()
        return [swap < 0.5, swap >= 0.5] if both < config.both_orders else [swap < 0.5]

    def ask(item: Item, own: list[str]) -> list[Request]:
        if own[0] == own[1]:
            raise Rejected("the two answers are equal")
        task = task_of(item.prompt)
        shown = [own[::-1] if swapped else own for swapped in orders(item)]
        texts = [judge.choose_request(task, first, second, template) for first, second in shown]
        return [instruction(text, config, occurrence=item.occurrence) for text in texts]

    def pair(item: Item, own: list[str], answers: list[Completion]) -> Pair:
        try:
            choices = [judge.parse_choice(answer.text) for answer in answers]
        except ValueError as reason:
            raise Rejected(str(reason)) from None
        winners = [(choice - 1) ^ swapped for choice, swapped in zip(choices, orders(item), strict=True)]
        positions.add(choices, winners)
        if len(set(winners)) > 1:
            raise Rejected("the order decides")
        won, lost = own[winners[0]], own[1 - winners[0]]
        facts = {"choices": choices, "swapped": orders(item)}
        return Pair(chosen=won, rejected=lost, rational=answers[0].text.strip(), facts=facts)

    settings: dict[str, Any] = wording_facts(template.text, config.template or "judge")
    settings |= {"both_orders": config.both_orders, "seed": config.seed}
    read = lambda answer: judge.parse_choice(answer.text)  # noqa: E731
    return Recipe("judge-on-policy", config, 2, ask, pair, settings, role=PAIR_JUDGE, read=read)


def judge_main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(JudgeConfig, argv, command="python -m revise judge-on-policy", example=JUDGE_EXAMPLE)
    positions = Positions()
    recipe_runner.make(judge_recipe(config, positions), summary=positions.sentence)


# --- answers that are judged already -------------------------------------------------------------------------------


T = TypeVar("T")
Unused = Annotated[T, Ignored("judge-off-policy asks no model"), tyro.conf.Suppress]


@dataclass(frozen=True, kw_only=True)
class OffPolicyConfig(PromptsConfig):
    """Make pairs from answers that already have ratings, as in UltraFeedback: the best against the worst. Ties make no
    pair.

    No model is called. So that one command line fits all four commands, these flags are accepted and ignored with a
    notice: --store, --endpoint, --model, --response-from, --target-model, --target-endpoint, --target-name and the
    chat-template flags. Any other flag that only the three other commands have is an error.
    """

    prompts: PathText
    """Rows with rated answers ("completions", each with "overall_score"), as in openbmb/UltraFeedback: a .jsonl, .json,
    .csv or .parquet file, a folder of such files, or a hub id. Rows without them are rejected."""
    seed: int = 0
    """Random seed for the prompts that --sample draws."""
    store: Unused[PathText | None] = None
    response_from: Unused[Side | None] = None
    endpoint: Unused[tuple[str, ...]] = ()
    model: Unused[str | None] = None
    target_model: Unused[PathText | None] = None
    target_endpoint: Unused[tuple[str, ...]] = ()
    target_name: Unused[str | None] = None
    chat_template: Unused[PathText | None] = None
    chat_template_kwargs: Unused[str | None] = None
    template_date: Unused[str | None] = None
    config: PathText | None = None
    """YAML file with settings under the names of the flags. Flags on the command line win over it."""


def off_policy_rows(prompts: Prompts) -> Iterator[Made]:
    """Equation 3."""
    for item in prompts:
        provenance = {"recipe": "judge-off-policy", "row": item.number, **item.names}
        try:
            pair: Pair | Rejected = _best_over_worst(item, prompts.reading)
        except Rejected as why:
            pair = why
        yield Made(item, pair, provenance, {})


def _best_over_worst(item: Item, reading: Reading) -> Pair:
    if "completions" not in item.row:
        raise Rejected("no completions")
    try:
        row = {name: value for name, value in item.row.items() if name not in ("chosen", "rejected")}
        record = parse_record(row, item.location, reading=reading)
    except Tie:
        raise Rejected("tie") from None
    except InputError as fault:
        raise Rejected(f"bad row: {str(fault).removeprefix(f'{item.location}: ')}") from None
    if record.ratings.scores is None:
        raise Rejected("no scores")
    models = {}
    for completion in reversed(item.row["completions"]):  # of equal answers the first one counts
        if isinstance(completion, dict):
            models[str(completion.get("response")).strip()] = completion.get("model")
    best, worst = record.texts
    facts: dict[str, Any] = {"scores": list(record.ratings.scores), "models": [models.get(best), models.get(worst)]}
    return Pair(best, worst, "", facts)


def off_policy_main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(OffPolicyConfig, argv, command="python -m revise judge-off-policy", example=OFF_POLICY_EXAMPLE)
    out = Path(config.out)
    pairs.check_out(out, config.prompts, config.only_prompts)
    count, n = off_policy_pairs(config, out)
    pairs.report(count, n, out)
    recipe_runner.check_pairs(count, n, out)


def off_policy_pairs(config: OffPolicyConfig, out: Path) -> tuple[pairs.Count, int]:
    """Writes the pairs of rows with rated answers into a file: what came of them, and how many rows there are. Raises
    InputError where none has such answers.
    """
    prompts = Prompts(config)
    if not any("completions" in item.row for item in prompts):
        raise InputError(
            f"{config.prompts}: no row has answers that are judged already (completions with overall_score); take "
            "those of openbmb/UltraFeedback to its prompts: --prompts openbmb/UltraFeedback --only-prompts "
            f"{config.prompts}"
        )
    return pairs.write(off_policy_rows(prompts), out), len(prompts)


# --- a stronger model ----------------------------------------------------------------------------------------------

NOT_ITS_THOUGHTS = "the winner is another model's answer, to which the model's own thoughts do not belong; leave it out"


@dataclass(frozen=True, kw_only=True)
class StrongerConfig(RecipeConfig):
    """Make pairs by preferring a stronger model's answers to the model's own."""

    model: str = ""
    """Name of the stronger model at --endpoint. Always required, also with --batch-write and --batch-read."""
    min_length_ratio: float = 0.0
    """Shortest answer of --model to accept, as a share of the characters of the target model's answer."""
    max_length_ratio: float | None = None
    """Longest answer of --model to accept, as a share of the characters of the target model's answer. Unset: no
    limit."""
    empty_system: Annotated[bool, Ignored("stronger-preferred sends the prompt unchanged"), tyro.conf.Suppress] = True
    keep_reasoning: Annotated[bool, Refused(NOT_ITS_THOUGHTS), tyro.conf.Suppress] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_reasoning:
            raise InputError(f"--keep-reasoning: {NOT_ITS_THOUGHTS}")
        _check_ratios(self.min_length_ratio, self.max_length_ratio)


def stronger_recipe(config: StrongerConfig) -> Recipe:
    """Equation 4."""

    def ask(item: Item, own: list[str]) -> list[Request]:
        beside = handed_on(item.location, item.context)
        return [question(item.messages, config, occurrence=item.occurrence, beside=beside)]

    def pair(item: Item, own: list[str], answers: list[Completion]) -> Pair:
        text = answers[0].text.strip()
        if clair.is_refusal(text):
            raise Rejected("refused")
        if text == own[0]:
            raise Rejected("unchanged")
        ratio = len(text) / len(own[0])
        if ratio < config.min_length_ratio:
            raise Rejected("too short")
        if config.max_length_ratio is not None and ratio > config.max_length_ratio:
            raise Rejected("too long")
        return Pair(text, own[0])

    settings = {"min_length_ratio": config.min_length_ratio, "max_length_ratio": config.max_length_ratio}
    return Recipe("stronger-preferred", config, 1, ask, pair, settings, is_worded=False)


def stronger_main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(StrongerConfig, argv, command="python -m revise stronger-preferred", example=STRONGER_EXAMPLE)
    recipe_runner.make(stronger_recipe(config))
