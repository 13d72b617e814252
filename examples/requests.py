"""The other side of revise/: programs that answer in a language model's place, behind a real HTTP server."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from revise.loopback import Reply, Seen, serve

TRIED = "Say yes."
"""What a server is asked by whoever only wants to know that it answers (examples/align/probe.py)."""


@contextmanager
def serve_models(models: Mapping[str, Callable[[Seen], str | Reply]], *, port: int = 0) -> Iterator[str]:
    """The address of a server of models, by name, until the block ends: each says what it answers to a request.

    port: of the loopback address; 0 takes a free one.
    """

    def reply(seen: Seen) -> Reply:
        if seen.path.endswith("/models"):
            return Reply.json({"object": "list", "data": [{"id": name, "object": "model"} for name in models]})
        name = seen.body["model"]
        if name not in models:
            return Reply.error(404, f"there is no model {name}", code="model_not_found")
        if seen.text == TRIED:
            return Reply.chat("Yes.", model=name)
        answer = models[name](seen)
        if isinstance(answer, Reply):
            return answer
        return Reply.chat(answer, usage=(len(seen.text) // 4, len(answer) // 4), model=name)

    with serve(reply, port=port) as server:
        yield server.base


def parts(text: str) -> list[str]:
    """The task and the answers in a request: what stands behind each name in braces, up to the next one."""
    asked = text.partition("\n\n-----------------\n")[0]
    return [part.strip() for part in re.split(r"\n\{(?:task|student_solution(?:_[12])?)\}: ", asked)[1:]]
