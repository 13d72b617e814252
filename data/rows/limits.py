"""How much of a row is used: three rules, of lengths alone.

    --max-prompt-tokens P, --max-response-tokens R    each part by itself; the default, 512 and 512
    --max-tokens N                                    prompt and response together lose their end, as in TRL 1.16;
                                                      prompts of N tokens and more are left out
    --max-tokens N --max-prompt-tokens P              as in TRL 0.9: where prompt and longest response exceed N, the
                                                      prompt is cut to P, then, if need be, the responses to N - P

    --max-tokens 0                                    nothing is cut; with one of the first two, that part alone

With --max-tokens a --max-response-tokens that is named cuts responses first. Of which end a prompt is cut, and that its
template's own tokens stay, is data/rows/examples.py's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from system import InputError

PROMPT_TOKENS = RESPONSE_TOKENS = 512
"""What holds where nothing is named: the words of arXiv 2408.06266."""


class TooLong(InputError):
    """A row that is well-formed and whose prompt leaves no room for a response."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much of a row is used."""

    prompt_tokens: int | None = PROMPT_TOKENS
    """None: prompts are not cut."""
    response_tokens: int | None = RESPONSE_TOKENS
    """None: responses have no limit of their own."""
    tokens: int | None = None
    """Of prompt and response together; with prompt_tokens beside it by the rule of TRL 0.9, else by that of 1.16."""
    keep_prompt: Literal["end", "start"] = "end"
    """Which part of a prompt that is too long stays; BOS and the template's headers always do."""
    context: int | None = None
    """Rows that are longer after the cut are faults: the model has not learnt positions beyond."""
    longest: int | None = None
    """Rows that are longer after the cut are faults, whatever is asked: no sequence beyond is computed (dynamic RoPE).
    """

    def sizes(self, prompt: int, responses: Sequence[int]) -> tuple[int, list[int]]:
        """How many tokens stay of a prompt and of each of the responses to it, of which the row has so many.

        Raises TooLong where the prompt leaves no room for a response.
        """
        sizes = [n if self.response_tokens is None else min(n, self.response_tokens) for n in responses]
        if self.tokens is None:
            return prompt if self.prompt_tokens is None else min(prompt, self.prompt_tokens), sizes
        if self.prompt_tokens is None:
            if prompt >= self.tokens:
                raise TooLong(
                    f"a prompt of {prompt:,} tokens leaves nothing of --max-tokens {self.tokens} for a response; raise "
                    "it, or have prompts cut: --max-prompt-tokens"
                )
            return prompt, [min(n, self.tokens - prompt) for n in sizes]
        if prompt + max(sizes) > self.tokens:
            prompt = min(prompt, self.prompt_tokens)
        if prompt + max(sizes) > self.tokens:
            sizes = [min(n, self.tokens - self.prompt_tokens) for n in sizes]
        return prompt, sizes

    @property
    def flag_of_responses(self) -> str:
        """The flag to raise where too little is left of responses."""
        return "--max-response-tokens" if self.tokens is None else "--max-tokens"

    @property
    def flags(self) -> str:
        """The flags to lower where rows are too long."""
        return "--max-prompt-tokens and --max-response-tokens" if self.tokens is None else "--max-tokens"
