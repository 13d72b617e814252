"""What the tensors of a checkpoint are called, and where in them one of our parameters stands."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple


class Place(NamedTuple):
    """Where a parameter stands in a checkpoint."""

    tensor: str
    first: int = 0
    """The tensor's row that is the parameter's first one."""


@dataclass(frozen=True)
class TensorNames:
    """A family's names, from which those of a folder follow."""

    of: Mapping[str, str]
    """Ours -> theirs, below a layer or outside of them."""
    body: str = "model."
    """What stands before the names of all but the head."""
    before_head: str = ""
    fused: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Their matrices that are several of ours, by rows: theirs -> ours, in order."""
    carried: tuple[str, ...] = ()
    """Patterns of tensors that are no part of what is trained, and go into every folder that is written."""

    def but(self, changes: Mapping[str, str]) -> "TensorNames":
        """The same but for these names of ours."""
        return replace(self, of={**self.of, **changes})

    def place(self, name: str, rows: Mapping[str, int]) -> Place:
        """Where a parameter or buffer of ours stands: blocks.3.mlp.up.weight in model.layers.3.mlp.up_proj.weight.

        rows: of ours that are fused, how many each has, by their names in a block (mlp.up).
        """
        match = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+?)(\.weight|\.bias)?", name)
        assert match is not None  # anything is a name
        layer = "" if match[1] is None else f"layers.{match[1]}."
        ours, end = match[2], match[3] or ""
        for theirs, parts in self.fused.items():
            if ours in parts:
                before = parts[: list(parts).index(ours)]
                return Place(f"{self.body}{layer}{theirs}{end}", sum(rows[part] for part in before))
        start = self.before_head if ours == "head" else self.body
        return Place(f"{start}{layer}{self.of[ours]}{end}")

    def is_carried(self, tensor: str) -> bool:
        """Whether a tensor of a folder is carried through."""
        return any(re.fullmatch(pattern, tensor) for pattern in self.carried)


LLAMA_NAMES = TensorNames(
    {
        "embed": "embed_tokens",
        "norm": "norm",
        "head": "lm_head",
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
        **{f"attention.{x}": f"self_attn.{x}_proj" for x in "qkvo"},
        **{f"attention.{x}_norm": f"self_attn.{x}_norm" for x in "qk"},
        **{f"mlp.{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
    }
)
"""Those of Llama, and of most others."""
