"""What the answers of a stage say so far, over all its servers: how many more may be asked, and when it is over.

The counting is in trial.py; here are the sentences in which a stage ends whose first answers are of no use, are all one
and the same, or are refusals: with the server's own words, the cause, and the flag that mends it.
"""

import hashlib
from collections.abc import Collection
from typing import Any

from revise.client import reading, trial, wire
from revise.client.endpoints import Endpoint, Pool
from revise.client.reading import Completion, Unreadable
from revise.client.roles import Role
from revise.client.store import Row, State, Store
from revise.client.trial import Sameness, Trial
from revise.client.wire import Request
from system import RunError

LEAST_CUT = 256  # tokens fewer than words that were sent: then the server has cut the prompt
UNKNOWN = "check the settings, the account and the server"
UNSTORED = "none of it is stored as refused, and the same command asks again; --go-on treats it as the rows' own fault"
PAID = "they are stored and paid for: --ask-again asks for new ones, --go-on treats them as the rows' own fault"


class Look:
    """Of one stage."""

    def __init__(self, pool: Pool, role: Role, *, goes_on: bool, accepted: Collection[str] = ()) -> None:
        """goes_on: whatever is found, the stage goes on. accepted: see reading.read_answer."""
        self._pool, self._role, self._goes_on, self._accepted = pool, role, goes_on, accepted
        self._stage = Trial(is_read=True, is_passed=goes_on)
        self._same = Sameness(is_open=role.makes_responses and not goes_on)
        self._own: list[Row] = []  # refusals of what stands in a row, kept back until the stage is known to work
        self._keys: list[str] = []  # of answers, until it is
        self._n_looked = 0
        self._is_known = False
        self._fault: RunError | None = None
        self._cut: tuple[int, int, int] = (0, 0, 0)
        self.useless: dict[str, str | None] = {}
        """Keys of answers that are of no use, where the stage has ended for that, and why where their text is good."""

    @property
    def room(self) -> float:
        """How many requests may be in flight."""
        room = self._stage.room if self._fault is None else 0
        return min(room, trial.MOST_USELESS - len(self._same.questions)) if self._same.is_open else room

    def knows(self, request: Request, state: State, store: Store) -> None:
        """An answer of an earlier run is in the store: if it is of use, so is what asked for it."""
        if self._is_known or state != "answered" or self._n_looked >= trial.LOOKED_AT:
            return
        self._n_looked += 1
        row = store.get(request.key)
        try:
            found = reading.read_answer(row.answer, request, self._accepted) if row else None
        except Unreadable:
            return
        if found is not None and self.why_useless(request, found) is None:
            self._is_known = self._stage.is_passed = True
            for endpoint in self._pool.endpoints:  # the first answer of each is waited for all the same
                endpoint.trial.is_passed = True
            self._same.is_open = False

    def why_useless(self, request: Request, answer: Completion) -> str | None:
        """Why no row can be made of an answer, whatever its text says."""
        if answer.fault is None:
            return request.check(answer) if request.check else None
        is_cut = answer.fault == reading.TRUNCATED  # an own answer that is long is no fault of anybody
        return None if is_cut and self._role.makes_responses and request.check is None else answer.fault

    def answered(self, endpoint: Endpoint, request: Request, answer: Completion, useless: str | None) -> list[Row]:
        """An answer has come. Gives the refusals that are known to be the rows' fault now."""
        self._count_cut(request, answer)
        if self._same.is_open and answer.fault is None:
            asked = wire.canonical(request.body.get("messages", request.body))
            self._same.add(hashlib.sha256(asked.encode()).digest(), answer.text)
        return self._taken(endpoint, request, useless, answer.text or answer.fault or "")

    def dropped(self, endpoint: Endpoint, request: Request, why: str) -> list[Row]:
        """An answer has come that is not kept."""
        return self._taken(endpoint, request, why, "")

    def _taken(self, endpoint: Endpoint, request: Request, useless: str | None, said: str) -> list[Row]:
        before = self.room, endpoint.trial.room
        held = endpoint.trial.answered(useless, said)
        self._stage.answered(useless, said)
        endpoint.trial.is_passed = endpoint.trial.is_passed or self._goes_on
        if self._is_settled:
            held += self._own
            self._own, self._keys = [], []
        else:
            self._keys.append(request.key)
        if (self.room, endpoint.trial.room) != before:
            self._pool.wake()
        return held

    @property
    def _is_settled(self) -> bool:
        return self._stage.is_passed and not self._same.is_open

    def refused(self, endpoint: Endpoint, row: Row, fault: Any) -> list[Row]:
        """A request was refused (scheduler.Refused). Gives what is to be stored now. Raises RunError where it is known
        that no row is at fault.
        """
        known = endpoint.trial
        if self._goes_on:
            known.is_read = known.is_passed = True
            self._pool.wake()
            return [row]
        if fault.is_own:
            if not known.is_read:
                known.is_read = True
                self._pool.wake()
            if self._is_settled:
                return [row]
            self._own.append(row)
            return []
        if fault.is_settings and not known.is_read:
            raise RunError(f"{endpoint.origin} answers {fault}; {fault.mend}; nothing is stored as refused")
        held, known.mend = known.is_refused(row, fault.words), fault.mend
        if known.is_refusing:
            n = len(known.refused)
            which = f"{n} requests in a row, in the same words" if known.is_read else f"the first {n} requests"
            mend = fault.mend or UNKNOWN
            self._fault = self._fault or RunError(
                f"{endpoint.origin} has refused {which} ({fault}); {mend}: {UNSTORED}"
            )
        return held

    def timed_out(self, endpoint: Endpoint, why: str) -> bool:
        """An attempt has timed out. Gives whether it is over: where nothing was answered yet, the others would, too."""
        endpoint.trial.n_timeouts += 1
        is_over = endpoint.trial.n_timeouts >= trial.FIRST_TIMEOUTS and not endpoint.trial.is_read and not self._goes_on
        if is_over:
            self._fault = self._fault or RunError(
                f"{endpoint.origin}: the first {endpoint.trial.n_timeouts} attempts have timed out ({why}), and may "
                f"have been paid for: raise --read-timeout, or ask for fewer tokens ({self._role.max_tokens}); --go-on "
                "sends the others anyway"
            )
        return is_over

    def check(self) -> None:
        """Raises RunError where the stage is over."""
        if self._fault is not None:
            raise self._fault
        if self._stage.has_failed:
            self._ends_useless(self._stage, f"the first {self._stage.n_useless} answers")
        for endpoint in self._pool.endpoints if self._stage.is_passed and not self._goes_on else ():
            if endpoint.trial.has_failed:
                self._ends_useless(endpoint.trial, f"the first {endpoint.trial.n_useless} answers of {endpoint.origin}")
        if self._same.is_found(trial.MOST_USELESS):
            self._ends_same()

    def end(self) -> list[Row]:
        """The stage has come to its end, with fewer answers than are looked at. Gives the refusals that are the rows'
        fault. Raises RunError where nothing in it was of use.
        """
        is_made = self._role.makes_responses or self._role.is_checked
        n = self._stage.n_useless
        if is_made and n and not self._stage.is_passed:
            self._ends_useless(self._stage, f"all {n} answers" if n > 1 else "the only answer")
        if not self._is_known and self._same.is_found(trial.LEAST_SAME):
            self._ends_same()
        held, self._own = self._own, []
        for endpoint in self._pool.endpoints:
            refused = endpoint.trial.refused
            if refused and not endpoint.trial.is_read and not self._is_known:
                said = refused[-1].answer.decode("utf-8", "replace")
                raise RunError(
                    f"{endpoint.origin} has refused {'everything' if len(refused) > 1 else 'the request'} ({said}); "
                    f"{endpoint.trial.mend or UNKNOWN}: {UNSTORED}"
                )
            held += refused
        return held

    def _ends_useless(self, found: Trial, which: str) -> None:
        self.useless |= dict.fromkeys(self._keys)
        what = f"{found.why}: {found.said!r}" if found.said and found.said != found.why else found.why
        mend = trial.cause(found.why).format(**self._role._asdict())
        said = f"{which} {'are' if found.n_useless > 1 else 'is'} unusable ({what})"
        raise RunError(f"{said}{'; ' + mend if mend else ''}; nothing more is sent: {PAID}")

    def _ends_same(self) -> None:
        n, text = len(self._same.questions), (self._same.text or "")[: trial.SHOWN]
        self.useless |= dict.fromkeys(self._keys, f"{trial.SAME} {n} different questions")
        raise RunError(
            f"{n} different questions got the same answer ({text!r}): a cache or a proxy answers instead of the model; "
            f"check {self._role.endpoint}; nothing more is sent: {PAID}"
        )

    # --- prompts that were cut -------------------------------------------------------------------------------------

    def _count_cut(self, request: Request, answer: Completion) -> None:
        """No tokenizer makes fewer tokens of a text than it has words between blanks."""
        if not answer.is_counted or not answer.tokens_in:
            return
        texts = [m["content"] for m in request.body.get("messages", ()) if isinstance(m.get("content"), str)]
        n_words = sum(len(text.split()) for text in texts)
        if n_words - answer.tokens_in > LEAST_CUT:
            self._cut = (self._cut[0] + 1, n_words, answer.tokens_in)

    def notice(self) -> str | None:
        """What is to be said at the end."""
        n, n_words, n_tokens = self._cut
        if not n:
            return None
        return (
            f"the server cut {n} prompts: of one with {n_words:,} words it read {n_tokens:,} tokens, and its answer is "
            "about those alone; give it a longer context (OLLAMA_CONTEXT_LENGTH, llama-server --ctx-size, vllm serve "
            "--max-model-len), and take a new --store"
        )
