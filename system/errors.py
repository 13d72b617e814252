"""Ends of a run that have a sentence of their own."""


class InputError(ValueError):
    """What the user gave cannot be used. The text is one sentence: location, fault, mend. Exit code 2, no traceback."""


class RunError(RuntimeError):
    """A run cannot go on although its input was fine. The text is one sentence. Exit code 1, no traceback."""

    speaks: bool | None = None
    """Of several ranks, whether this one prints it; None: the first one does."""


class NotFinite(RunError):
    """A loss, or the gradient of a step, is no number any more."""


class Stopped(RunError):
    """A run that ended early because it was asked to: what it has done is kept. code: the exit code."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.code = code

    def __reduce__(self) -> tuple[type["Stopped"], tuple[str, int]]:
        return Stopped, (str(self), self.code)  # another process may raise it


def list_faults(faults: list[str], n_rows: int, *, mend: str, n_faults: int | None = None) -> InputError:
    """One InputError for many faults: the first ten, then the count. `mend` says what to do about them.

    n_faults: how many there are, where `faults` are only the first.
    """
    n_faults = len(faults) if n_faults is None else n_faults
    shown = "\n".join(f"  {fault}" for fault in faults[:10])
    more = f"\n  ... and {n_faults - 10} more" if n_faults > 10 else ""
    return InputError(f"{n_faults} of {n_rows} rows cannot be used; {mend}\n{shown}{more}")
