"""Files of rows that stand for pairs which are still to be made, while a recipe is checked."""

import json
import re
from pathlib import Path

from revise.prompts import Prompts
from revise.recipes import OffPolicyConfig, off_policy_pairs
from system import InputError, files

MOST_ROWS = 2000
"""Rows that stand in for pairs; hours of more are theirs in proportion."""
GRADES = {"chosen_score": 9.0, "rejected_score": 1.0, "own_score": 1.0}
"""What stands for grades that are still to be given."""


class Stand:
    """Files of rows in the place of pairs that are still to be made."""

    def __init__(self, folder: Path, *, is_graded: bool) -> None:
        self._folder, self._grades = folder, GRADES if is_graded else {}
        self._stands_for: dict[Path, str] = {}
        self.shares: dict[Path, float] = {}
        """How many times as many rows there will be as a file has."""

    def __call__(self, name: str, prompts: Prompts, n_tokens: int, recipe: str) -> Path:
        """A file of rows with these prompts, and responses of so many words. recipe: which will make them."""
        path, n = self._folder / f"{name}.jsonl", min(len(prompts), MOST_ROWS)
        step = len(prompts) / max(1, n)
        taken = {int(i * step) for i in range(n)}
        files.write_rows(path, (
            {"prompt": item.messages, **item.context.fields(), "chosen": " yes" * n_tokens,
             "rejected": " no" * (n_tokens - 1) + f" {i}", "provenance": {"recipe": recipe}, **self._grades}
            for i, item in enumerate(prompts) if i in taken
        ))  # fmt: skip
        self.shares[path] = len(prompts) / max(1, n)
        self._stands_for[path] = f"the pairs to be made ({name})"
        return path

    def judged(self, name: str, config: OffPolicyConfig) -> Path:
        """The pairs of rows that are judged already, for which nobody is asked. Raises InputError where there are
        none.
        """
        path = self._folder / f"{name}.jsonl"
        count, n = off_policy_pairs(config, path)
        if not count.n_pairs:
            why = count.reasons.most_common(1)[0][0]
            raise InputError(f"{config.prompts}: none of the {n:,} rows makes a pair ({why})")
        if self._grades:
            rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
            files.write_rows(path, [{**row, **self._grades} for row in rows])
        self._stands_for[path] = f"the pairs of {config.prompts}"
        return path

    def named(self, fault: str) -> str:
        """A sentence about rows of these files, whose paths nobody knows, as one about the pairs to be made."""
        for path, name in self._stands_for.items():
            row = rf"\s*{re.escape(str(path))}:\d+: "
            if path in self.shares:  # all are alike
                fault = re.sub(
                    rf"[\d,]+ of [\d,]+ rows cannot be used; .*\n{row}(.*)(?:\n(?:{row}|\s*\.\.\. and ).*)*",
                    r"a pair to be made, with answers as long as they may be: \1", fault,
                )  # fmt: skip
            fault = fault.replace(str(path), name)
        return fault
