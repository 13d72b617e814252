"""Names a package elsewhere that stands before one of ours, in the working directory mostly: parts of both would be
imported, and fail far from the cause.

Our packages take `refuse` from this file by its path when they are imported: `import system` might be the stranger's.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("data", "engine", "eval", "examples", "losses", "revise", "system")


def stranger() -> str | None:
    """What stands before one of our packages, in a sentence; None where nothing does."""
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is None:  # examples/ is no part of a wheel
            continue
        if spec.origin is None:  # a plain folder, where the installation looks for ours last
            (folder, *_) = spec.submodule_search_locations or [name]
            return f"{folder}: hides the package {name} of {ROOT}; run ./launch.sh setup again, or pip install -e ."
        folder = Path(spec.origin).resolve().parent
        if folder.parent != ROOT:
            return f"{folder}: hides the package {name} of {ROOT}; rename it, or start in another directory"
    return None


def refuse() -> None:
    """Ends a command (python -m) with the sentence and exit code 2. Raises ImportError in another program."""
    found = stranger()
    if found is None:
        return
    if sys.argv[:1] == ["-m"]:  # what Python calls a module that it has not found yet
        print(f"error: {found}", file=sys.stderr)
        sys.exit(2)
    raise ImportError(found)
