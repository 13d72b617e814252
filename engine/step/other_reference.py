"""A reference that is another model than the start (--reference-model): what it has to have in common with the policy.

Only its log-probs of the same token ids count, so its shapes are its own. Its vocabulary is the policy's, which is
compared before weights are read: by the tokenizers' files, or, where one of the two folders has none, by size.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from data.rows import Example, open_folder
from data.text import Tokenizer
from engine import weights
from engine.config import ReferenceConfig
from engine.model import ModelConfig
from engine.step.objective import Objective
from system import InputError, cli

NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "tied": "tie_word_embeddings",
    "rms_norm_eps": "rms_norm_eps",
    "layers": "windows and rotary positions of its layers",
}
"""What is the same in two models of which one can follow the other: a ModelConfig's fields, as config.json has them."""
NOT_COMPARED = {"raw", "context", "names", "model_type"}
"""Fields that may differ; every other one has to be equal."""


@dataclass(frozen=True)
class OtherReference:
    """Another model than the one that the policy starts from."""

    folder: Path
    config: ModelConfig
    lacks: Mapping[int, str]
    """Tokens of the policy's tokenizer that it does not have, by their ids; rows may not hold them."""

    def check_rows(self, rows: Iterable[Example], *, beyond_context: bool) -> None:
        """Raises InputError for the first row that it cannot score as it is: located, with the remedy."""
        n_ids = self.config.vocab_size
        lacking = np.fromiter(self.lacks, np.int64)
        for row in rows:
            ids = np.concatenate([row.prompt, *row.responses])
            if ids.max() >= n_ids or (len(lacking) and np.isin(ids, lacking).any()):
                i = next(int(i) for i in ids if i >= n_ids or i in self.lacks)
                name = f" ({self.lacks[i]})" if i in self.lacks else ""
                raise InputError(
                    f"{row.location}: holds token {i}{name}, which {self.folder} does not have; name a "
                    "--reference-model of the same vocabulary, or leave the row out"
                )
            n, context = len(row.prompt) + max(map(len, row.responses)), self.config.context
            if self.config.longest is not None and n > self.config.longest:
                raise InputError(
                    f"{row.location}: {n:,} tokens after the cut, and the dynamic RoPE of {self.folder} cannot "
                    f"go beyond max_position_embeddings ({self.config.longest:,}), not even with --beyond-context; "
                    "cut rows shorter"
                )
            if context is not None and n > context and not beyond_context:
                raise InputError(
                    f"{row.location}: {n:,} tokens after the cut, and the context of {self.folder} "
                    f"(max_position_embeddings) has {context:,}; cut rows shorter, or take them: --beyond-context"
                )


def open_reference(
    asked: ReferenceConfig, model: Path, tokenizer: Tokenizer | None, policy: ModelConfig, objective: Objective
) -> OtherReference | None:
    """What --reference-model names, compared with the policy in a folder; None where that is the reference itself.

    tokenizer: the policy's. Reads no weights. Raises InputError where the two do not go together.
    """
    if asked.model is None:
        return None
    folder, theirs = open_folder(asked.model)
    if folder.resolve() == model.resolve():
        return None
    built = weights.build(folder)
    weights.check(folder, built)
    config = built.config
    lacks = _compared(folder, theirs, config.vocab_size, model, tokenizer, policy.vocab_size)
    if objective.needs_divergence and config.vocab_size != policy.vocab_size:
        raise InputError(
            f"{folder}: has rows for {config.vocab_size:,} tokens, and {model} for {policy.vocab_size:,}; "
            f"{objective.name} compares whole next-token distributions, so --reference-model has to have as many"
        )
    if asked.update != "none":
        if weights.is_adapter(folder):
            raise InputError(
                f"--reference-update {asked.update}: moves the reference's weights to the policy's, and {folder} is an "
                "adapter beside its base; leave it out, or merge it (engine.merge) and name that folder"
            )
        _check_same_shapes(asked, folder, config, policy)
    return OtherReference(folder, config, lacks)


def _compared(
    folder: Path, theirs: Tokenizer | None, n_theirs: int, model: Path, ours: Tokenizer | None, n_ours: int
) -> Mapping[int, str]:
    """Tokens that the policy's tokenizer has and the reference's lacks.

    Raises InputError where an id is two tokens, or where there is nothing but sizes to compare, and they differ.
    """
    if theirs is None or ours is None:
        without = " and ".join(str(f) for f, t in ((folder, theirs), (model, ours)) if t is None)
        if n_theirs != n_ours:
            raise InputError(
                f"{folder}: has rows for {n_theirs:,} tokens, and {model} for {n_ours:,}; whether it is the same "
                f"vocabulary cannot be told, since there is no tokenizer in {without}: put it there, or name another "
                "--reference-model"
            )
        cli.notify_once(
            f"{folder}: assumed to have the vocabulary of {model}, since both have rows for {n_ours:,} tokens; there "
            f"is no tokenizer in {without} to compare"
        )
        return {}
    words, known = ours.words(), theirs.words()
    for i in sorted(words.keys() & known.keys()):
        if words[i] != known[i]:
            raise InputError(
                f"{folder}: token {i} is {known[i]!r}, and {words[i]!r} in {model}; --reference-model has to have the "
                "vocabulary of --model"
            )
    return {i: word for i, word in words.items() if i not in known}


def _check_same_shapes(asked: ReferenceConfig, folder: Path, config: ModelConfig, policy: ModelConfig) -> None:
    for field in (f.name for f in fields(config) if f.name not in NOT_COMPARED):
        theirs, ours, name = getattr(config, field), getattr(policy, field), NAMES.get(field, field)
        if theirs != ours:
            if field == "layers" and len(theirs) == len(ours):
                pairs = enumerate(zip(theirs, ours, strict=True))
                theirs, ours = next((f"{a} in layer {i}", b) for i, (a, b) in pairs if a != b)
            raise InputError(
                f"--reference-update {asked.update}: moves the reference's weights to the policy's, and {folder} is of "
                f"another shape than --model ({name}: {theirs} and {ours}); leave it out, or name a --reference-model "
                "of the same shape"
            )
