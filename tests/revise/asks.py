"""A client and a server that does what a test says."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revise.client import SERVED, ClientConfig, Request, Tally, answer_all, endpoints_of, open_store
from revise.client.store import Row
from revise.loopback import Server, serve


def questions(n):
    """n different requests."""
    return [Request({"model": "m", "messages": [{"role": "user", "content": f"question {i}"}]}) for i in range(n)]


@dataclass
class Outcome:
    """What came of a run of requests."""

    tally: Tally | None
    fault: Exception | None
    server: Server
    rows: list[Row]
    texts: list[str]
    """Every request's text, in the order of arrival."""
    headers: list[dict[str, str]]

    @property
    def states(self):
        """Of each request, in order; None where it is not in the store."""
        return [row and row.state for row in self.rows]


def ask(folder: Path, reply, n=1, *, requests=None, role=SERVED, **settings: Any) -> Outcome:
    """n questions, asked of a server that replies as a function of what it has seen."""
    requests = questions(n) if requests is None else requests
    texts, headers = [], []

    def seen_by(seen):
        texts.append(seen.text)
        headers.append(seen.headers)
        return reply(seen)

    with serve(seen_by) as server:
        bases = settings.pop("endpoint", (server.base,))
        config = ClientConfig(store=str(folder / "store.sqlite"), endpoint=bases, model="m", **settings)
        tally = fault = None
        with open_store(Path(config.store)) as store:
            try:
                tally = answer_all(requests, store, config, endpoints_of(bases, config), purpose="test", role=role)
            except Exception as found:
                fault = found
            rows = [store.get(request.key) for request in requests]
    return Outcome(tally, fault, server, rows, texts, headers)
