"""Files of rows that stand for pairs which are still to be made, while a recipe is checked."""

import json
import re
from pathlib import Path

from revise.prompts import Item, Prompts
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
        self._places: dict[Path, list[str]] = {}
        """Of each row, where its prompt is from."""
        self.shares: dict[Path, float] = {}
        """How many times as many rows there will be as a file has."""
        self.others: dict[Path, Path] = {}
        """The other prompts of a file that has not all of them, with short responses: for their form alone."""

    def __call__(self, name: str, prompts: Prompts, n_tokens: int, recipe: str) -> Path:
        """A file of rows with these prompts, and responses of so many words. recipe: which will make them."""
        path, n = self._folder / f"{name}.jsonl", min(len(prompts), MOST_ROWS)
        step = len(prompts) / max(1, n)
        taken = {int(i * step) for i in range(n)}

        def write(path: Path, items: list[tuple[int, Item]], n_tokens: int) -> None:
            self._places[path] = [item.location for _, item in items]
            self._stands_for[path] = f"the pairs to be made ({name})"
            files.write_rows(path, (
                {"prompt": item.messages, **item.context.fields(), "chosen": " yes" * n_tokens,
                 "rejected": " no" * (n_tokens - 1) + f" {i}", "provenance": {"recipe": recipe}, **self._grades}
                for i, item in items
            ))  # fmt: skip

        write(path, [one for one in enumerate(prompts) if one[0] in taken], n_tokens)
        self.shares[path] = len(prompts) / max(1, n)
        if n < len(prompts):
            self.others[path] = path.with_suffix(".others.jsonl")
            write(self.others[path], [one for one in enumerate(prompts) if one[0] not in taken], 1)
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
            row = rf"\s*{re.escape(str(path))}:(\d+): "
            if (places := self._places.get(path)) is not None:  # one row says it
                fault = re.sub(
                    rf"[\d,]+ of [\d,]+ rows cannot be used; .*\n{row}(.*)(?:\n(?:{row}|\s*\.\.\. and ).*)*",
                    lambda m, places=places: f"{places[int(m[1]) - 1]}: a pair to be made of this prompt, with "
                    f"answers as long as they may be: {m[2]}", fault,
                )  # fmt: skip
            fault = fault.replace(str(path), name)
        return fault
