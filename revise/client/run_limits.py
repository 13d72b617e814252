"""When a run of requests ends before its time: nobody answers, a cap is reached. What answers say is in trial.py."""

import time

from revise.client.config import ClientConfig
from system import RunError, Stopped

FIRST_PATIENCE = 60.0  # seconds: where no server was ever reached, waiting is of little use


class RunLimits:
    """Watches what ends a run; each check raises the sentence that it ends with."""

    def __init__(self, config: ClientConfig, spent: float) -> None:
        """spent: dollars, of everything in the store."""
        self._config = config
        self._spent, self._reserved = spent, 0.0
        self._last_answer = time.monotonic()
        self._last_failure: str | None = None  # since the last answer
        self._has_answers = self._is_reached = False

    def answered(self, dollars: float) -> None:
        """An answer has come, at a price."""
        self._spent += dollars
        self._last_answer, self._last_failure, self._has_answers = time.monotonic(), None, True

    def spend(self, dollars: float) -> None:
        """Something was paid, or may have been, that brought no answer."""
        self._spent += dollars

    def failed(self, why: str, *, is_reached: bool) -> None:
        """An attempt has failed; is_reached: at a server."""
        self._last_failure = why
        self._is_reached = self._is_reached or is_reached

    def reserve(self, dollars: float) -> None:
        """A request is in flight that is expected to cost that much."""
        self._reserved += dollars

    def release(self, dollars: float) -> None:
        """It is no more."""
        self._reserved -= dollars

    def check_patience(self, *, has_known: bool) -> None:
        """Raises RunError where attempts have done nothing but fail for too long. has_known: answers of this run's
        requests were in the store.
        """
        patience = self._config.patience
        if not self._has_answers and not has_known and not self._is_reached:
            patience = min(patience, FIRST_PATIENCE)
        if self._last_failure is not None and time.monotonic() - self._last_answer > patience:
            raise RunError(
                f"no answer for {patience:g} s (the last attempt: {self._last_failure}); answers so far are stored, "
                "and the same command continues from there"
            )

    def allows(self, dollars: float, n_sent: int, n_in_flight: int) -> bool:
        """Whether one more request may be sent now; where not, it may be when those in flight are home.

        Raises Stopped where a cap is reached.
        """
        c = self._config
        if c.max_requests is not None and n_sent >= c.max_requests:
            raise Stopped(f"--max-requests: {c.max_requests:,} requests have been sent", 1)
        if c.max_cost is None or self._spent + self._reserved + dollars <= c.max_cost:
            return True
        if n_in_flight:
            return False
        raise Stopped(f"--max-cost: ${self._spent:,.4f} of ${c.max_cost:,.4f} are spent", 1)
