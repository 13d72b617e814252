"""All that we use of torch's private names, which torch may take away without a word: as they are in 2.11 to 2.13.

Each says what it is for and what happens where a torch lacks it; tests/system/test_torch_private.py then fails and
names it. Imports stand where they are needed: one brings the compiler, and --help does without torch.
"""

from typing import Any

from system.cli import notify
from system.errors import InputError

DESCRIBES_STATES = (
    "Metadata", "MetadataIndex", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "StorageMeta",
    "_StorageInfo", "_MEM_FORMAT_ENCODING",
)  # fmt: skip
"""Of torch.distributed.checkpoint: all that a state's metadata, which is a pickle, may name. Where one is called
otherwise, a state is refused in a sentence that says which."""
DESCRIBES_LAYOUTS = ("torch.serialization", "_get_layout")
"""As above: the function by which torch pickles a tensor's layout."""


def let_compiler_recompute() -> None:
    """Lets compiled code compute in the backward pass what products need of it, where it would keep it.

    Where torch lacks the setting, that is said, and more memory is used.
    """
    from torch._functorch import config  # brings the compiler

    if hasattr(config, "ban_recompute_materialized_backward"):
        config.ban_recompute_materialized_backward = False
    else:
        notify(
            "with this version of torch compiled blocks keep more for the backward pass; --compile no may need less "
            "memory"
        )


GRAPHS = 32
"""Of a function: what a model with adapters in some of its blocks, layers of two kinds and a reference may need."""


def allow_graphs() -> None:
    """Lets the compiler keep so many graphs of one function, where it would run the ninth uncompiled.

    Where torch lacks the setting, that is said, and some of a model's blocks may run uncompiled.
    """
    from torch._dynamo import config  # brings the compiler

    if hasattr(config, "recompile_limit"):
        config.recompile_limit = max(config.recompile_limit, GRAPHS)
    else:
        notify("this version of torch cannot be told how many compiled graphs to keep; some blocks may run uncompiled")


def default_store() -> Any:
    """What all ranks of the process group can read and write. Where torch does not give it out, that is said: None."""
    from torch.distributed import distributed_c10d

    give = getattr(distributed_c10d, "_get_default_store", None)
    if give is None:
        notify("this version of torch hides the store that ranks share; an error will not name a rank that is lost")
        return None
    return give()


def orthogonalise(matrix: Any) -> Any:
    """The nearest matrix of orthogonal rows or columns, about, in bf16: Newton-Schulz as torch.optim.Muon does it.

    May write into the matrix that it is given. Raises InputError where torch has it elsewhere.
    """
    from torch.optim import _muon

    make = getattr(_muon, "_zeropower_via_newtonschulz", None)
    if make is None:
        raise InputError(
            "--optimizer muon: this version of torch has another Muon than 2.11 to 2.13; use --optimizer adamw"
        )
    return make(matrix, (_muon.DEFAULT_A, _muon.DEFAULT_B, _muon.DEFAULT_C), _muon.DEFAULT_NS_STEPS, _muon.EPS)
