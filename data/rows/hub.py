"""Models and data sets by hub id."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from system import InputError, cli

PATTERNS = {
    "model": ["*.safetensors", "*.json", "*.jinja", "*.model", "tokenizer.model*", "*.tiktoken", "merges*", "vocab*"],
    "dataset": [
        "README.md",  # which files are which split
        *("*.jsonl", "*.json", "*.ndjson", "*.csv", "*.tsv", "*.parquet", "*.arrow"),
        *("*.jsonl.gz", "*.json.gz", "*.ndjson.gz", "*.csv.gz", "*.tsv.gz"),
    ],
}
_FURTHER = "additional_chat_templates"
ELSEWHERE = [_FURTHER[:i] + rest for i, letter in enumerate(_FURTHER) for rest in (f"[!{letter}]*/*", "/*")]
"""Every subfolder of a model but that one: in original/ and onnx/ its weights stand once more."""
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy")
EXAMPLES = {
    "model": "a checkpoint folder or a hub id such as meta-llama/Meta-Llama-3-8B-Instruct",
    "dataset": "a file, a folder or a hub id such as ContextualAI/ultrafeedback_clair_32k",
}


def find_model(name: str) -> Path:
    """The folder of a model: `name` itself where it is a folder, else the hub's snapshot of that id.

    Under torchrun one rank of a node downloads while the others wait for its lock. Raises InputError in one sentence
    where there is neither.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{name}: this is a file; give the folder that holds it")
    return snapshot(name, "model")


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a hub id: owner/name, perhaps with @revision."""
    return name.partition("@")[0].count("/") == 1 and not name.startswith((".", "/", "~"))


def snapshot(name: str, kind: Literal["model", "dataset"]) -> Path:
    """The folder of the hub's snapshot of an id, owner/name or owner/name@revision.

    Where the hub cannot be asked, what an earlier download has left is taken, and that is said; offline
    (HF_HUB_OFFLINE) nobody is asked. Raises InputError, with the cause.
    """
    if not is_hub_id(name):
        raise InputError(f"{name}: no such file or folder; give {EXAMPLES[kind]}")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import constants  # slow to import, and not needed for folders
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    repo, _, revision = name.partition("@")
    if constants.HF_HUB_OFFLINE:
        if (folder := _cached(repo, kind, revision)) is None:
            raise InputError(
                f"{name}: no such file or folder, and not in the hub's cache; unset HF_HUB_OFFLINE to download it"
            )
        return folder
    try:
        return _downloaded(repo, kind, revision)
    except HFValidationError:
        raise InputError(f"{name}: no such file or folder, and not a hub id; give {EXAMPLES[kind]}") from None
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as fault:
        raise InputError(
            f"{name}: no such file or folder, and the hub refuses it ({_first_line(fault)}); check the id, or log in "
            "if it is gated"
        ) from None
    except Exception as fault:  # of the network, of whatever answers there, of the cache's folder
        cause = _cause(fault)
        if (folder := _cached(repo, kind, revision)) is None:
            raise InputError(
                f"{name}: no such file or folder, and {cause}; fix that, or download it elsewhere and give its folder"
            ) from None
        cli.notify_once(f"{name}: {cause}; the copy of an earlier download is used: {folder}")
        return folder


def _downloaded(repo: str, kind: str, revision: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    found = HfApi().repo_info(repo, repo_type=kind, revision=revision or None)  # by itself: who cannot answer is told
    return Path(snapshot_download(repo, repo_type=kind, revision=found.sha, **_wanted(kind)))


def _cached(repo: str, kind: str, revision: str) -> Path | None:
    """The whole snapshot that an earlier download has left; None where there is none."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(repo, repo_type=kind, revision=revision or None, local_files_only=True, **_wanted(kind))
        )
    except Exception:  # whatever is wrong with it, it is none
        return None


def _wanted(kind: str) -> dict[str, Any]:
    return {"allow_patterns": PATTERNS[kind], "ignore_patterns": ELSEWHERE if kind == "model" else []}


def _cause(fault: BaseException) -> str:
    """Why the hub could not be asked, in words that name what can be mended."""
    chain = list(_chain(fault))
    names = {kind.__name__ for one in chain for kind in type(one).__mro__}
    proxy = next((name for name in PROXIES if os.environ.get(name)), None)
    if any(isinstance(one, ImportError) and "socks" in str(one).lower() for one in chain):
        return f"{proxy or 'the environment'} names a SOCKS proxy, which needs pip install 'httpx[socks]'"
    status = next((one.response.status_code for one in chain if getattr(one, "response", None) is not None), None)  # pyright: ignore[reportAttributeAccessIssue]
    asked = os.environ.get("HF_ENDPOINT") or "the hub"
    if proxy and ("ProxyError" in names or status in (403, 407)):
        refusal = f"{status}" if status else _first_line(chain[-1])
        return f"the proxy that {proxy} names refuses to connect to {asked} ({refusal})"
    if status is not None:
        return f"{asked} answers {status} ({_first_line(chain[0])})"
    if names & {"LocalProtocolError", "UnicodeEncodeError"}:
        return "the token of the hub (HF_TOKEN, or what hf auth login has left) has characters that no header can have"
    if names & {
        "JSONDecodeError",
        "KeyError",
        "TypeError",
        "AssertionError",
        "ValidationError",
        "StrictDataclassError",
    }:
        return f"what answers at {asked} is not the hub, perhaps a page to log in to the network"
    if names & {"ConnectError", "TimeoutException", "OfflineModeIsEnabled"}:
        way = f" through the proxy that {proxy} names" if proxy else ""
        return f"{asked} cannot be reached{way} ({_first_line(chain[-1])})"
    if names & {"NetworkError", "ProtocolError"}:
        return f"the connection to {asked} was cut ({_first_line(chain[-1])})"
    local = next((one for one in chain if isinstance(one, OSError) and one.filename), None)
    if local is not None:
        return f"the hub's cache cannot be used ({local.filename}: {local.strerror}; HF_HOME says where it is)"
    return f"{asked} cannot be asked ({type(chain[0]).__name__}: {_first_line(chain[0])})"


def _chain(fault: BaseException | None) -> Iterator[BaseException]:
    """An exception and what it was raised from, the first cause last."""
    seen: set[int] = set()
    while fault is not None and id(fault) not in seen:
        seen.add(id(fault))
        yield fault
        fault = fault.__cause__ or fault.__context__


def _first_line(fault: BaseException) -> str:
    return (str(fault).strip() or type(fault).__name__).splitlines()[0]
