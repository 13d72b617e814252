"""Answers sampled from a checkpoint, or asked of a server.

    python -m engine.generate --model DIR --prompts FILE --out FILE
    python -m engine.generate --model BASE --adapter DIR --prompts FILE --out FILE
    python -m engine.generate --endpoint http://localhost:8000/v1 --model NAME --prompts FILE --out FILE

Answers go into OUT's name with .partial as they end; the same command goes on from there, and FILE appears when all
are there, in the order of the prompts. How they are grown is in engine/sampling/decoding.py.
"""

import functools
import hashlib
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from data.rows import NotUsed, PromptRow, ReadingSettings, open_model, read_prompts
from data.text import (
    NO_CONTEXT,
    NO_SETTINGS,
    ROLES,
    Chat,
    Message,
    TemplateContext,
    TemplateSettings,
    Tokenizer,
    stop_ids,
)
from engine import weights
from engine.config import AdapterSettings, host
from engine.distributed import is_out_of_memory
from engine.model import Transformer
from engine.sampling import Answer, Partial, Sampling, check_stops, generate, ids_of_stops, prompt_fields, says_stop
from system import InputError, RunError, cli, files, list_faults
from system.flags import PathText

__all__ = ["Answer", "Answerer", "GenerateConfig", "Sampling", "draw", "generate"]

EXAMPLE = "python -m engine.generate --model path/to/llama --prompts prompts.jsonl --out answers.jsonl"
SERVERS = "engine.generate"  # the entry points (setup.cfg) that know how a server is asked
OF_SPEED = ("batch_size", "prefill_tokens")  # what changes no answer


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Sampling, ReadingSettings, TemplateSettings, AdapterSettings):
    """Sample answers to prompts from a checkpoint or a server, and write one JSON line per answer, in prompt order."""

    model: PathText
    """Model that answers: a checkpoint folder (Hugging Face layout, safetensors), an adapter's folder, or a hub id.
    With --endpoint: the name of the model on the server."""
    prompts: PathText
    """Prompts: a .jsonl, .json, .csv or .parquet file whose rows have "prompt" (text or messages) or "prompt_ids", and
    optionally "system", "tools" and "chat_template_kwargs". Responses in the rows are ignored."""
    out: PathText
    """Output file, with the prompt and finish reason of each answer. It must not exist yet, except with --ask-again. An
    unfinished run keeps its answers in OUT.partial; the same command resumes it."""
    endpoint: tuple[str, ...] = ()
    """URL of an OpenAI-compatible server that answers instead of a local checkpoint, such as http://localhost:8000/v1.
    Several URLs share the work. --stop-ids, --dtype, --beyond-context, --adapter, --base-dtype and the chat-template
    flags are for a local checkpoint only; --header, --extra, --api, --stream, --accept-finish-reason, --max-answer-mb,
    --go-on and --ask-again need --endpoint."""
    key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the API key of the server. If OPENAI_API_KEY, the default, is not
    set, no key is sent; none sends no key either."""
    concurrency: int = 64
    """Maximum number of requests in flight at the same time, for each server."""
    header: tuple[str, ...] = ()
    """Additional HTTP header for the server, as 'NAME: VALUE'. $VARIABLE in it is read from the environment."""
    extra: str | None = None
    """JSON object to merge into the body of each request; a field with the value null is removed. Unset: nothing."""
    api: Literal["chat", "responses"] = "chat"
    """API of the server. chat: /chat/completions. responses: OpenAI's Responses API, for a server that offers no
    other."""
    stream: bool = False
    """Ask the server to stream its answers; some servers offer nothing else."""
    accept_finish_reason: tuple[str, ...] = ()
    """Additional finish reasons that mark an answer of the server as complete. stop, end_turn, eos, stop_sequence and
    no finish reason at all always do."""
    max_answer_mb: float = 8.0
    """Maximum size of an answer of the server in megabytes; a larger one is refused."""
    read_timeout: float = 300.0
    """Seconds to wait for the next byte of an answer of the server before the attempt fails. Raise it for slow
    models."""
    go_on: bool = False
    """Continue even if the first answers of the server are unusable or it refuses many requests in a row. By default
    the command stops then, to save cost."""
    ask_again: bool = False
    """Send again the requests that the server refused or answered without text. Without it such prompts are only
    listed, in answers.rejected.jsonl for --out answers.jsonl."""
    config: PathText | None = None
    """YAML file of settings with the names of these flags. Flags on the command line win over the file."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype to compute in. Unset: bfloat16 on a GPU (float32 weights are rounded), float32 on the CPU."""
    beyond_context: bool = False
    """Accept prompts that fill the model's context (max_position_embeddings), and let answers grow beyond it. By
    default such prompts are an error, and an answer ends where the context is full."""

    def __post_init__(self) -> None:
        for part in (Sampling, ReadingSettings, TemplateSettings):
            part.__post_init__(self)
        for name in ("stop_ids", "dtype", "beyond_context"):
            if self.endpoint and getattr(self, name):
                flag = f"--{name.replace('_', '-')}"
                raise InputError(f"{flag}: applies to a local checkpoint, not to --endpoint; leave it out")
        for name in ("adapter", "base_dtype"):
            if self.endpoint and getattr(self, name) is not None:
                raise InputError(
                    f"--{name.replace('_', '-')}: applies to a local checkpoint, not to --endpoint; leave it out, and "
                    "give --model the server's name of the adapter"
                )
        if self.endpoint and self.given:
            raise InputError(f"{self.given[0]}: applies to a local checkpoint, not to --endpoint; leave it out")
        own = ("ask_again", "go_on", "header", "extra", "api", "stream", "accept_finish_reason", "max_answer_mb")
        for name in own:
            if getattr(self, name) != getattr(GenerateConfig, name) and not self.endpoint:
                raise InputError(f"--{name.replace('_', '-')}: needs --endpoint; add it, or leave this flag out")


class _NoRoom(InputError):
    """A prompt fills the model's context."""


class Answerer:
    """A checkpoint and its tokenizer, ready to answer."""

    def __init__(
        self,
        folder: Path,
        chat: Chat | None,
        dtype: Literal["float32", "bfloat16"] | None,
        *,
        base: Path | None = None,
        base_dtype: str | None = None,
        beyond_context: bool = False,
    ) -> None:
        """base, base_dtype: as `weights.build` takes them. beyond_context: let prompts and answers go beyond the
        positions that the model has learnt.

        Raises InputError where the folder cannot be used. The weights are read by the first `answer`.
        """
        self.folder, self.chat, self._base_dtype = folder, chat, base_dtype
        self._shape = weights.build(folder, base=base, base_dtype=base_dtype)
        self.base = self._shape.base_source
        """The folder of an adapter's base; None of a whole model."""
        weights.check(folder, self._shape)
        if beyond_context and (longest := self._shape.config.longest) is not None:
            raise InputError(
                f"--beyond-context: {folder} has dynamic RoPE, which cannot go beyond max_position_embeddings "
                f"({longest:,}); leave it out, and answers end there"
            )
        self.beyond_context = beyond_context
        self.context = None if beyond_context else self._shape.config.context
        """Most tokens of a prompt and its answer; None where there is no such limit."""
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = dtype or ("bfloat16" if self._device == "cuda" else "float32")
        self._model: Transformer | None = None

    @classmethod
    def open(
        cls,
        model: str,
        dtype: Literal["float32", "bfloat16"] | None = None,
        settings: TemplateSettings = NO_SETTINGS,
        *,
        base: Path | None = None,
        base_dtype: str | None = None,
        beyond_context: bool = False,
    ) -> "Answerer":
        """model: a checkpoint folder or hub id. dtype: bfloat16 on CUDA, float32 on the CPU where it is None. settings:
        of its chat template. base: of an adapter, the folder of another base than it names.
        """
        folder, chat = open_model(model, settings, base=base)
        return cls(folder, chat, dtype, base=base, base_dtype=base_dtype, beyond_context=beyond_context)

    @property
    def roles(self) -> Collection[str]:
        """Those that a prompt may have."""
        return self.chat.roles if self.chat else ROLES

    def prompt_ids(
        self, location: str, prompt: Sequence[Message | int], context: TemplateContext = NO_CONTEXT
    ) -> list[int]:
        """A prompt as token ids. context: what its template is given beside it.

        Raises InputError, located, where it cannot be one.
        """
        messages = [m for m in prompt if isinstance(m, Message)]
        ids = [i for i in prompt if isinstance(i, int)]
        if messages and self.chat is None:
            raise InputError(f'{location}: the prompt is text, and {self.folder} has no tokenizer; give "prompt_ids"')
        if messages and self.chat is not None:
            try:
                ids = self.chat.prompt_ids(messages, context)
            except InputError as fault:
                raise InputError(f"{location}: {fault}") from None
        if max(ids) >= (size := self._shape.config.vocab_size):
            raise InputError(f"{location}: token id {max(ids)} is outside the model's vocabulary of {size}")
        self._check_room(location, ids)
        return ids

    def _check_room(self, location: str, ids: Sequence[int]) -> None:
        if self.context is None or len(ids) < self.context:
            return
        said = f"{location}: a prompt of {len(ids)} tokens leaves no room in a context of {self.context}"
        if self._shape.config.longest is not None:
            raise InputError(f"{said} (max_position_embeddings), which dynamic RoPE cannot exceed; shorten it")
        raise _NoRoom(f"{said}; shorten it")

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the checkpoint: weights, configuration, tokenizer; of an adapter with its base, and how that is
        held.
        """
        kinds = (".safetensors", ".json", ".model", ".jinja")
        paths = [
            path
            for folder in filter(None, (self.folder, self.base))
            for path in sorted(p for p in folder.iterdir() if p.suffix in kinds)
        ]
        whole = hashlib.sha256()
        if self._base_dtype is not None:
            whole.update(f"base dtype {self._base_dtype}\0".encode())
        for path, found in zip(paths, files.digests(paths), strict=True):
            whole.update(f"{path.name}\0".encode() + found)
        return whole.hexdigest()

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        on_finish: Callable[[Answer], object] = lambda answer: None,
        numbers: Sequence[int] | None = None,
        wanted: Callable[[int, int], bool] = lambda prompt, sample: True,
    ) -> list[Answer]:
        """See generate. Raises InputError where a prompt leaves no room, or there is no tokenizer to tell --stop by."""
        for i, ids in enumerate(prompts):
            self._check_room(f"prompt {i + 1}", ids)
        self.check_stop(sampling.stop)
        model, dtype = self.base or self.folder, getattr(torch, self.dtype)
        stop = [*stop_ids(model, self.chat), *ids_of_stops(sampling.stop, self._tokenizer)]
        if self._model is None:
            host.keep_pages()
            weights.say_if_rounded(model, dtype)
            self._model = weights.load(
                self.folder, dtype, self._device, base=self.base, base_dtype=self._base_dtype
            ).eval()
            self._model.config = replace(self._model.config, context=self.context)
        never = self.chat.tokenizer.ids_without_token(self._shape.config.vocab_size) if self.chat else ()
        ends = says_stop(sampling.stop, self._tokenizer)
        return generate(
            self._model, prompts, sampling, stop, on_finish, numbers=numbers, ends=ends, wanted=wanted, never=never
        )

    def check_stop(self, stop: Sequence[str]) -> None:
        """Raises InputError where one of the texts that are to end an answer can never be said by one."""
        check_stops(stop, self._tokenizer, self.folder)

    @property
    def _tokenizer(self) -> Tokenizer | None:
        return self.chat and self.chat.tokenizer

    def text(self, answer: Answer, stop: Sequence[str] = ()) -> str:
        """What an answer says, up to the first of the texts that end it."""
        assert self.chat is not None  # without a tokenizer there is none
        text = self.chat.tokenizer.decode(answer.ids)
        return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]


@contextmanager
def draw(
    answerer: Answerer, prompts: Sequence[Sequence[int]], sampling: Sampling, out: Path, name: str | None = None
) -> Iterator[Partial]:
    """All answers to prompts of token ids, each kept beside `out` when it ends: a run that was stopped goes on.

    name: for the progress bar. Raises InputError where what is there are answers of another model or other settings.
    """
    settings = {f.name: getattr(sampling, f.name) for f in fields(Sampling) if f.name not in OF_SPEED}
    answerer.check_stop(sampling.stop)
    settings |= {"model": answerer.digest, "dtype": answerer.dtype, "prompts": prompts}
    settings |= {"beyond_context": True} if answerer.beyond_context else {}
    settings |= {} if answerer.context is not None else {"context": None}
    with Partial(out, settings) as partial:
        known = frozenset(partial.answers)
        with tqdm(total=len(prompts) * sampling.n, desc=name, initial=len(known), unit="answer", disable=None) as bar:

            def keep(answer: Answer) -> None:
                said = {"response_ids": answer.ids}
                if answerer.chat:
                    said = {"response": answerer.text(answer, sampling.stop)}
                partial.add(answer.prompt, answer.sample, said | {"finish": answer.finish})
                bar.update()

            try:
                answerer.answer(prompts, sampling, keep, wanted=lambda prompt, sample: (prompt, sample) not in known)
            except Exception as fault:
                if is_out_of_memory(fault):
                    raise RunError(
                        f"out of memory with {sampling.batch_size} answers at a time; lower the batch size, or the "
                        "maximum tokens of an answer: finished answers are kept, and the same command resumes"
                    ) from None
                raise
        yield partial


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(GenerateConfig, argv, command="python -m engine.generate", example=EXAMPLE)
    out = Path(config.out)
    is_own = out.is_file() and Path(f"{out}.sqlite").is_file()  # of a server's answers, which are asked for again
    if not (config.ask_again and is_own):
        files.check_new_file(out)
    answer_all = _served if config.endpoint else _drawn
    n, n_prompts = answer_all(config, out)
    print(f"{n} answers to {n_prompts} prompts: {config.out}", file=sys.stderr)


def _drawn(config: GenerateConfig, out: Path) -> tuple[int, int]:
    """Answers of a checkpoint. Numbers of answers and prompts."""
    folder, base = weights.find_adapted(config.model, config.adapter, config.base_dtype)
    answerer = Answerer.open(
        str(folder),
        config.dtype,
        config,
        base=base,
        base_dtype=config.base_dtype,
        beyond_context=config.beyond_context,
    )
    prompts = read_prompts(config.prompts, config.reading, roles=answerer.roles)
    _say_what_is_not_used(config.prompts, prompts)
    ids = _prompt_ids(answerer, prompts)
    if (context := answerer.context) is not None:
        n_short = sum(len(i) + config.max_new_tokens > context for i in ids)
        if n_short:
            cli.notify(
                f"{config.prompts}: {n_short} of {len(ids)} prompts leave less than --max-new-tokens "
                f"{config.max_new_tokens} in the model's context of {context}; answers to them end there"
            )
    with draw(answerer, ids, config, out) as drawn:
        drawn.finish(out, prompts)
    return len(drawn.answers), len(ids)


def _prompt_ids(answerer: Answerer, prompts: Sequence[PromptRow]) -> list[list[int]]:
    """The prompts as token ids. Raises InputError listing the first ten that cannot be answered, with their count."""
    ids: list[list[int]] = []
    faults: list[InputError] = []
    for row in prompts:
        try:
            ids.append(answerer.prompt_ids(row.location, row.prompt, row.context))
        except InputError as fault:
            faults.append(fault)
    if faults:
        mend = "fix or delete them"
        if any(isinstance(fault, _NoRoom) for fault in faults):
            mend += "; --beyond-context accepts prompts that fill the context"
        raise list_faults([str(fault) for fault in faults], len(prompts), mend=mend)
    return ids


def _say_what_is_not_used(source: str, prompts: Sequence[PromptRow]) -> None:
    not_used = NotUsed()
    for row in prompts:
        not_used.add(row)
    for sentence in not_used.sentences():
        cli.notify(f"{source}: {sentence}")


def _served(config: GenerateConfig, out: Path) -> tuple[int, int]:
    """Answers of a server. Numbers of answers and prompts."""
    prompts = read_prompts(config.prompts, config.reading)
    for row in prompts:
        if not all(isinstance(m, Message) for m in row.prompt):
            raise InputError(f'{row.location}: the prompt is token ids, and a server takes text; give "prompt"')
    _say_what_is_not_used(config.prompts, prompts)
    # (response, finish), or (None, why there is none); samples of a prompt together
    texts: Iterator[tuple[str | None, str]] = _server_backend()(
        prompts,
        store=f"{config.out}.sqlite",
        endpoint=config.endpoint,
        model=config.model,
        key_env=config.key_env,
        concurrency=config.concurrency,
        header=config.header,
        extra=config.extra,
        api=config.api,
        stream=config.stream,
        accept_finish_reason=config.accept_finish_reason,
        max_answer_mb=config.max_answer_mb,
        read_timeout=config.read_timeout,
        go_on=config.go_on,
        ask_again=config.ask_again,
        n=config.n,
        seed=config.seed,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        stop=config.stop,
    )
    rows, rejected = [], []
    for i, (text, finish) in enumerate(texts):
        row = prompt_fields(prompts[i // config.n]) | {"sample": i % config.n}
        if text is None:
            rejected.append(row | {"reason": finish})
        else:
            rows.append(row | {"response": text, "finish": finish})
    if not rows:
        raise RunError(f"no prompt has an answer ({rejected[0]['reason']}); --ask-again sends the requests again")
    beside = out.with_name(f"{out.name.removesuffix('.jsonl')}.rejected.jsonl")
    if rejected:
        files.write_rows(beside, rejected)
        cli.notify(
            f"{len(rejected)} answers are missing ({rejected[0]['reason']}) and listed in {beside}; --ask-again sends "
            "their requests again"
        )
    elif config.ask_again:  # what was refused before is there now
        beside.unlink(missing_ok=True)
    files.write_rows(out, rows)
    return len(rows), len(prompts)


def _server_backend() -> Callable[..., Iterator[tuple[str | None, str]]]:
    """Who asks servers: a package above this one, which the installation names, so that nothing is imported upwards."""
    found = list(metadata.entry_points(group=SERVERS, name="endpoint"))
    mend = "run ./launch.sh setup, or pip install -e . in the repository's folder"
    if not found:
        raise InputError(
            f"--endpoint: this project is not installed in this environment, so its HTTP client cannot be found; {mend}"
        )
    try:
        return found[0].load()
    except ModuleNotFoundError as fault:
        if not f"{found[0].module}.".startswith(f"{fault.name}."):
            raise
        raise InputError(f"--endpoint: the installed package is not this one ({fault}); {mend}") from None


if __name__ == "__main__":
    cli.run(main)
