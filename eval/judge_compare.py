"""The model's own answers against the winning ones, by a judge: what `eval advise --judge-endpoint` rests on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.rows import Example, Reading, Record, read_records
from data.text import NO_SETTINGS, TemplateSettings
from eval.judge_client import Judge, Sent
from revise import judge as judges
from revise.client import ClientConfig, open_store, parse_extra, parse_headers
from system import InputError, RunError, cli
from system.flags import PathText

JUDGE_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """A judge, and how own answers are drawn for it."""

    judge_endpoint: tuple[str, ...] = ()
    """Base URL of an OpenAI-compatible server of a judge. The model samples a new answer to each prompt, and the judge
    compares it with the winner; the model's answer comes first in half of the pairs. Unset: the scores in the rows are
    used."""
    judge: str = ""
    """Name of the judge at --judge-endpoint."""
    judge_key_env: tuple[str, ...] = ("OPENAI_API_KEY",)
    """Environment variable that holds the judge's API key."""
    judge_header: tuple[str, ...] = ()
    """Extra header for requests to the judge, as 'NAME: VALUE', with $VARIABLE from the environment."""
    judge_extra: str | None = None
    """JSON object to merge into each request to the judge; null removes a field."""
    judge_template: PathText | None = None
    """File with another prompt template for the judge, in which <TASK>, <STUDENT_SOLUTION_1> and <STUDENT_SOLUTION_2>
    are replaced by the texts. Unset: this project's own."""
    judge_temperature: float = 0.7
    """Sampling temperature of the judge."""
    store: PathText | None = None
    """SQLite file that keeps the judge's answers, required with --judge-endpoint. The model's own answers are kept
    beside it."""
    concurrency: int = 64
    """Maximum number of requests to the judge in flight at once."""
    own_temperature: float = 1.0
    """Sampling temperature of the model's answers that a judge compares."""
    max_new_tokens: int = 512
    """Maximum number of tokens of the model's answers that a judge compares."""

    def __post_init__(self) -> None:
        parse_headers(self.judge_header, "--judge-header")
        parse_extra(self.judge_extra, "--judge-extra")
        if self.judge_endpoint and not (self.judge and self.store):
            raise InputError(
                "--judge-endpoint needs the judge's name there, --judge, and a file for its answers, --store"
            )
        if not self.judge_endpoint and (self.judge or self.store or self.judge_template or self.judge_extra):
            raise InputError("--judge, --store, --judge-template and --judge-extra go with --judge-endpoint")


def compare(
    examples: Sequence[Example],
    model: str,
    source: str,
    reading: Reading,
    config: JudgeSettings,
    *,
    seed: int,
    settings: TemplateSettings = NO_SETTINGS,
) -> list[Example]:
    """Examples with the judge's verdict as scores, 1 for what is better and 0 for the other; without those lacking one.

    source, reading: what they were read from, for their texts. settings: of the model's chat template. Raises
    InputError for rows of token ids, RunError where no answer of the judge can be read.
    """
    from engine.generate import Answerer, Sampling, draw  # it brings torch: flags are answered without

    assert config.store is not None  # checked with the flags
    template = judges.choice_template(config.judge_template, flag="--judge-template")
    answerer = Answerer.open(model, settings=settings)
    if answerer.chat is None:
        raise InputError(f"{model}: has no tokenizer, but a judge reads text; give another model")
    records = {r.location: r for r in read_records(source, reading, roles=answerer.roles) if isinstance(r, Record)}
    for e in examples:
        if records[e.location].is_tokenised:
            raise InputError(f"{e.location}: token ids, but a judge reads text; name a file of texts by --data")
    client = ClientConfig(
        store=config.store, endpoint=config.judge_endpoint, model=config.judge, key_env=config.judge_key_env,
        concurrency=config.concurrency, header=config.judge_header,
    )  # fmt: skip
    with open_store(Path(config.store)) as store:
        judge = Judge(client, Sent(store), extra=parse_extra(config.judge_extra))
        sampling = Sampling(max_new_tokens=config.max_new_tokens, temperature=config.own_temperature, seed=seed)
        prompts = [e.prompt.tolist() for e in examples]
        with draw(answerer, prompts, sampling, Path(config.store), name="own answers") as drawn:
            own = drawn.answers
        requests = []
        for i, e in enumerate(examples):
            record = records[e.location]
            winner, answer = record.texts[0], own[i, 0]["response"]
            first, second = (answer, winner) if i % 2 else (winner, answer)
            text = judges.compare(record.messages, first, second, template)
            body = {"messages": [{"role": "user", "content": text}], "temperature": config.judge_temperature}
            requests.append(judge.request(body | {"max_tokens": JUDGE_TOKENS}))
        found = judge.ask(requests)
    made = []
    for i, (e, answer) in enumerate(zip(examples, found, strict=True)):
        try:
            choice = judges.parse_choice(answer.completion.text) if answer.completion else None
        except ValueError:
            choice = None
        if choice is not None:
            is_own = choice == (1 if i % 2 else 2)
            made.append(e._replace(ratings=e.ratings._replace(scores=(float(not is_own), 0.0), own=float(is_own))))
    if not made:
        why = found[0].fault or (found[0].completion.text[:80] if found[0].completion else "")
        raise RunError(
            f"--judge: none of its answers names [1] or [2] ({why!r}); take a model that follows instructions"
        )
    if len(made) < len(examples):
        cli.notify(f"{len(examples) - len(made)} of {len(examples)} pairs have no verdict and are left out")
    return made
