"""A checkpoint folder, a model's or an adapter's, on the Hugging Face hub: its weights, its tokenizer, and the model
card that the run wrote.

    python -m engine.publish runs/first/epoch-18 --repo my-name/my-model --dry-run
    python -m engine.publish runs/first/epoch-18 --repo my-name/my-model

The repository is private unless --public says otherwise, and gets one commit: it never holds half of a model. What was
sent before an upload was cut off is not sent again when the same command is given once more.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import tyro

from data.rows import is_adapter, is_hub_id, is_model_folder
from engine import weights
from engine.run import CARD
from system import TEMPORARY, InputError, RunError, cli
from system.flags import PathText
from system.run_folder import checkpoints_of

EXAMPLE = "python -m engine.publish runs/first/epoch-18 --repo my-name/my-model --dry-run"
OF_WEIGHTS = ("*.safetensors", weights.INDEX, "config.json", "adapter_config.json")
"""Files of a model before, which go from the repository where this one has none of that name: an adapter beside a
config.json is taken for a model, and a model beside an adapter_config.json gets that adapter.
"""
MEND = "give the same command again: files that were sent are not sent again"


@dataclass(frozen=True, kw_only=True)
class PublishConfig:
    """Upload a checkpoint folder with its model card to the Hugging Face hub."""

    folder: tyro.conf.Positional[PathText]
    """Checkpoint folder to upload: an epoch folder of a run (a model or an adapter), or one written by engine.convert
    or engine.merge."""
    repo: str
    """Repository on the hub, as ORG/NAME. It is created if it does not exist."""
    public: bool = False
    """Publish to a public repository. By default the repository is private, and an existing public one is refused."""
    card: PathText | None = None
    """Model card to upload instead of the folder's README.md, for example an edited copy of it."""
    existing_card: Literal["refuse", "keep", "replace"] = "refuse"
    """What to do if the repository already has a different README.md: refuse to publish, keep that one, or replace
    it."""
    dry_run: bool = False
    """Print the files that would be uploaded and the model card, without contacting the hub."""
    config: PathText | None = None
    """YAML file of settings with the names of these flags. Flags on the command line win over the file."""

    def __post_init__(self) -> None:
        if not is_hub_id(self.repo) or "@" in self.repo:
            raise InputError(f"--repo: {self.repo} is not of the form ORG/NAME")


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(PublishConfig, argv, command="python -m engine.publish", example=EXAMPLE)
    folder = Path(config.folder)
    check(folder)
    say_if_local(folder)
    files = files_of(folder)
    if config.card is not None:
        card = Path(config.card)
        if not card.is_file():
            raise InputError(f"--card: {card} is not a file; give a README.md")
        files[CARD] = card
    text = files[CARD].read_text(encoding="utf-8") if CARD in files else None
    if text is None:
        cli.notify(f"{folder}: has no model card (README.md); --card FILE adds one")
    elif not has_licence(text):
        cli.notify(
            f"{files[CARD]}: names no licence; add a line such as license: mit between the first two lines of ---"
        )
    if config.dry_run:
        print("\n".join(_shown(config, files, text)))
        return
    print(publish(config, files))


def check(folder: Path) -> None:
    """Raises InputError unless a folder is a checkpoint, whole and readable. Nothing but headers is read."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give a checkpoint folder, such as runs/first/epoch-18")
    if not is_model_folder(folder) and (found := checkpoints_of(folder)):
        raise InputError(f"{folder}: a run's folder; name one of its checkpoints, such as {found[-1]}")
    if folder.name.endswith(TEMPORARY):
        raise InputError(f"{folder}: is being written; give a folder without {TEMPORARY}")
    if not is_adapter(folder):
        weights.check(folder, weights.build(folder))
        return
    found = weights.read_adapter(folder)
    if found.base is not None and Path(found.base).is_dir():  # one of the hub is not downloaded for a look
        weights.build(folder)


def say_if_local(folder: Path) -> None:
    """Says of an adapter whose base nobody else finds."""
    base = weights.read_adapter(folder).base if is_adapter(folder) else None
    if is_adapter(folder) and (base is None or Path(base).exists() or not is_hub_id(base)):
        said = "does not name its base" if base is None else f"names its base by a path of this machine, {base}"
        cli.notify(
            f"{folder / 'adapter_config.json'}: {said}; write the base's hub id into base_model_name_or_path, so that "
            "others can load it"
        )


def files_of(folder: Path) -> dict[str, Path]:
    """What is sent of a folder, by its name in the repository: all but hidden files and what is half written."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") or part.endswith(TEMPORARY) for part in parts):
            found["/".join(parts)] = path
    return found


def has_licence(card: str) -> bool:
    """Whether the YAML in front of a model card names a licence."""
    front = card.split("---\n")[1] if card.startswith("---\n") else ""
    return any(line.startswith("license:") and line.partition(":")[2].strip() for line in front.splitlines())


def publish(config: PublishConfig, files: Mapping[str, Path]) -> str:
    """Sends the files in one commit, and gives its address. Raises InputError where the repository is not to be written
    into as asked, RunError where the hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token  # slow to import

    if get_token() is None:
        raise InputError("no token for the hub: log in with `hf auth login`, or set HF_TOKEN to one that may write")
    api = HfApi()
    with _faults(config.repo):
        there = _blobs(api, config)
    sent = dict(files)
    if CARD in there and CARD in sent and there[CARD] != blob_id(sent[CARD].read_bytes()):
        if config.existing_card == "refuse":
            raise InputError(
                f"{config.repo}: holds another README.md; --existing-card keep leaves it, --existing-card replace "
                "overwrites it"
            )
        if config.existing_card == "keep":
            del sent[CARD]
    stale = [name for name in there if name not in sent and any(fnmatch(name, pattern) for pattern in OF_WEIGHTS)]
    operations = [CommitOperationAdd(name, path) for name, path in sent.items()]
    with _faults(config.repo):
        made = api.create_commit(
            config.repo,
            [*operations, *map(CommitOperationDelete, stale)],
            commit_message=f"Add {Path(config.folder).resolve().name}",
        )
    return made.commit_url


def _blobs(api: Any, config: PublishConfig) -> dict[str, str | None]:
    """The repository's files and the digests by which git knows them; it is made where there is none.

    Raises InputError where it is public and should not be, or the other way round.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.repo_info(config.repo, files_metadata=True)
    except RepositoryNotFoundError:
        api.create_repo(config.repo, private=not config.public)
        cli.notify(f"{config.repo}: created as a {'public' if config.public else 'private'} repository")
        return {}
    if info.private == config.public:
        is_, mend = ("public", "give --public") if config.public is False else ("private", "leave --public out")
        raise InputError(f"{config.repo}: is {is_} already; {mend}, or change that on its page")
    return {one.rfilename: one.blob_id for one in info.siblings or []}


@contextmanager
def _faults(repo: str) -> Iterator[None]:
    """What the hub refuses, and what does not reach it, in a sentence."""
    from huggingface_hub.errors import HfHubHTTPError

    of_http: type[BaseException] = HfHubHTTPError.__bases__[0]  # the HTTP library's own
    try:
        yield
    except (of_http, OSError, RuntimeError) as fault:  # the last is what an upload's are wrapped in
        cause = fault.__cause__ if isinstance(fault, RuntimeError) and fault.__cause__ else fault
        if isinstance(cause, HfHubHTTPError):
            raise _refused(repo, cause) from None
        said = str(cause).strip().split("\n")[0] or type(cause).__name__
        raise RunError(f"{repo}: the hub cannot be reached ({said}); {MEND}") from None
    except InputError:
        raise
    except ValueError as fault:  # the library's checks of names and cards
        raise InputError(f"{repo}: {' '.join(str(fault).split())}") from None


def _refused(repo: str, fault: Any) -> InputError | RunError:
    code = fault.response.status_code if fault.response is not None else 0
    said = str(fault.server_message or fault).strip().split("\n")[0]
    if code in (401, 403, 404):
        return InputError(
            f"{repo}: the hub refuses ({code}: {said}); check the name, and that the token may write there"
        )
    if 400 <= code < 500:
        return InputError(f"{repo}: the hub refuses ({code}: {said})")
    return RunError(f"{repo}: the hub failed ({code}: {said}); {MEND}")


def blob_id(content: bytes) -> str:
    """The digest by which git knows a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _shown(config: PublishConfig, files: Mapping[str, Path], card: str | None) -> Iterator[str]:
    sizes = {name: path.stat().st_size for name, path in files.items()}
    kind = "public" if config.public else "private"
    yield f"{config.repo} ({kind}) would get {len(files)} files of {config.folder}, {sum(sizes.values()):,} bytes:"
    yield from (f"  {name:40} {size:>16,}" for name, size in sizes.items())
    if card is not None:
        yield f"\n{CARD}:\n\n{card}"


if __name__ == "__main__":
    cli.run(main)
