"""What the tensors of a checkpoint are called, and where in them one of our parameters stands."""

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple


class Place(NamedTuple):
    """Where a parameter stands in a checkpoint."""

    tensor: str
    first: int = 0
    """The tensor's row that is the parameter's first one."""


class Layout(NamedTuple):
    """One of several ways in which folders of a family name the same tensors."""

    body: str
    """What stands before the names of all but the head."""
    before_head: str


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
    carried: Mapping[str, str] = field(default_factory=dict)
    """What is no part of what is trained and goes into every folder that is written: in words -> a pattern of its
    tensors."""
    layouts: tuple[Layout, ...] = ()
    """Where folders differ in what stands before the names: which there are; one's own tensors tell."""

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

    def found_in(self, tensors: Container[str]) -> "TensorNames":
        """The same as a folder of these tensors has them; as they are where it has none of the layouts."""
        for body, before_head in self.layouts:
            if f"{body}{self.of['norm']}.weight" in tensors:
                return replace(self, body=body, before_head=before_head)
        return self

    @property
    def inside(self) -> "TensorNames":
        """The names of transformers' modules, by which an adapter's tensors are called: the last of the layouts."""
        return (
            replace(self, body=self.layouts[-1].body, before_head=self.layouts[-1].before_head)
            if self.layouts
            else self
        )

    def is_carried(self, tensor: str) -> bool:
        """Whether a tensor of a folder is carried through."""
        return any(re.fullmatch(pattern, tensor) for pattern in self.carried.values())

    def not_there(self, tensors: Iterable[str]) -> list[str]:
        """What of all that is carried has no tensor, in words."""
        known = list(tensors)
        return [what for what, pattern in self.carried.items() if not any(re.fullmatch(pattern, n) for n in known)]


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
