"""What a model card says of an adapter: what it is, and how it is loaded beside its base."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.model import Adapter

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank can be (vllm/config/lora.py)."""


@dataclass(frozen=True, kw_only=True)
class AdapterCard:
    """An adapter in a run's cards."""

    adapter: Adapter
    targets: Sequence[str]
    """Its layers, as target_modules names them."""
    base_dtype: str
    """How the base's matrices are held while it trains."""
    start: str | None
    """What the user called the adapter that it started from."""

    @property
    def form(self) -> str:
        """Rank, scale and layers, in words."""
        a = self.adapter
        scale = f"alpha {a.alpha:g}{', rank-stabilised' if a.rslora else ''}"
        also = f", and {' and '.join(a.whole)} whole" if a.whole else ""
        return f"rank {a.rank}, {scale}, on {', '.join(self.targets)}{also}"

    def use(self, base: str | None, name: str) -> Iterator[str]:
        """How it is loaded, line by line. base: the base's hub id, where it has one; name: the adapter's folder."""
        known = base or "BASE"
        merge = f"`python -m engine.merge --model {known} --adapter {name} --out {name}-merged`"
        yield from ["", "## How to load it", "", "With peft, which finds the base by adapter_config.json:", ""]
        yield from ["```python", "from peft import AutoPeftModelForCausalLM", ""]
        yield from [f'model = AutoPeftModelForCausalLM.from_pretrained("{name}")', "```", ""]
        rank = next((r for r in RANKS if r >= self.adapter.rank), None)
        if self.adapter.whole or rank is None:
            what = f"with {' and '.join(self.adapter.whole)} whole" if rank else f"of a rank above {RANKS[-1]}"
            yield f"vLLM serves no adapter {what}; {merge} writes it and its base as one model."
        else:
            yield from ["With vLLM:", "", "```"]
            yield f"vllm serve {known} --enable-lora --max-lora-rank {rank} --lora-modules {name}={name}"
            yield from ["```", "", f"{merge} writes it and its base as one model."]
        if self.base_dtype in ("int8", "nf4"):
            yield ""
            yield f"It belongs to a base whose matrices are held in {self.base_dtype} (engine.json), as it trained."
