"""What is known of a run before any weights are read: the shape, the rows, the objective, the steps."""

import contextlib
import functools
import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.revisions import with_revised
from data.rows import Example, count_repeated, find_cut, find_folder, hold_out, in_form, read_examples
from data.show import show
from data.text import TemplateSettings, Tokenizer, stop_ids
from engine import weights
from engine.config import TrainConfig, check_trackers, world_size
from engine.distributed import Ranks
from engine.model import ModelConfig, Transformer
from engine.optim import Options, describe
from engine.planning import Plan, TokenStatistics
from engine.run import (
    DAY,
    KEPT_MODEL,
    Adapting,
    Continued,
    check_apart,
    check_folder,
    check_name,
    day_of,
    identity,
    open_chat,
    say,
)
from engine.step import (
    Objective,
    OtherReference,
    ReferenceLogps,
    Steps,
    check_mismatched,
    check_objective,
    check_shared,
    heldout_names,
    modes,
    notices,
    open_reference,
    weights_report,
)
from system import InputError

REPORTS = ("report", "eval_report", "heldout_report", "weights_report")
"""What is said before a run starts, by its name among the facts."""


class TrainingInputs:
    """What is known of a run before any weights are read. The same on every rank."""

    def __init__(self, config: TrainConfig, part: int = 0, *, options: Options | None = None) -> None:
        """Reads and checks the rows. part: which of --stages parts of them, from 0; all of them are checked. options:
        of parameters whose learning rate or decay differs from the run's (Hooks.parameter_options).

        Raises InputError for anything that cannot be trained on as asked.
        """
        check_folder(Path(config.out), resumes=config.checkpoints.resumes)
        check_trackers(config.watching.track)
        self.config = config
        past = config.checkpoints.continue_from
        self.continued = None if past is None else Continued.find(Path(past))
        """The finished run that this one goes on with."""
        asked = config.objective
        self.objective = Objective(asked.loss, asked.beta, asked.hyperparameters)
        if asked.own_score != "row" and "own_scores" not in self.objective.needs:
            raise InputError(
                f"--own-score {asked.own_score}: {self.objective.name} does not use that score; leave it out"
            )
        is_ranked, fields = self.objective.form == "ranked", self.objective.fields
        self.reading = replace(config.data.reading, ranked=is_ranked, fields=fields)
        self.folder = self._find()
        self.adapting = Adapting.of(config, self.folder)
        """What is known of the adapter that trains; None where all weights do."""
        self.chat = open_chat(self.folder, self.adapting, self._template_settings())
        self.policy = self._build_policy()
        """The policy, on the meta device."""
        self.file_digests = functools.cache(weights.file_digests)
        """Of a model's folder, as it was when they were first asked for."""
        tokenizer = self.chat and self.chat.tokenizer
        self.other = self._open_other(tokenizer)
        """The model that --reference-model names, where that is another than the policy's."""
        self.limits = config.data.limits_in(self.policy.config.context, self.policy.config.longest)
        self.options = options
        self.stop_ids = stop_ids(self.folder, self.chat)
        rows, self.facts = self._read(config.data.sources, config.data.weights)
        rows, self.heldout = self._prepare(*self._hold_out(rows))
        self.examples = self._in_form(_part(rows, part, config.schedule.stages))
        """Those that are trained on, in the objective's form."""
        if config.schedule.stages > 1:
            self.facts["stage"] = f"{part + 1} of {config.schedule.stages}"
        self._check_measured()
        check_shared(config.reference.cache)
        if self.other is not None:
            self.other.check_rows([*self.examples, *self.heldout], beyond_context=config.data.beyond_context)
        if self.objective.needs_mismatched:
            for rows in filter(None, (self.examples, self.heldout)):
                check_mismatched(rows, min((m.longest for m in self._models if m.longest is not None), default=None))
        self.past_epochs = self.continued.n_epochs if self.continued else 0
        """Those of the runs that this one goes on with."""
        self.steps = Steps(self.examples, config.data, config.schedule, self.objective, n_past=self.past_epochs)
        if weights_said := weights_report(self.objective, self.examples):
            self.facts["weights_report"] = weights_said
        for sentence in notices(self.objective, self.examples, self.steps):
            say(sentence)
        self.modes = modes(config.reference, self.objective, keeps=config.measuring.keeps_reference)
        """What --reference can mean, what is preferred first."""
        self.statistics = TokenStatistics.of(
            self.examples,
            config.measuring.packing(self.originals),
            config.schedule.batch_size,
            world_size(),
            is_mismatched=self.objective.needs_mismatched,
            whole_step=self.objective.whole_step,
            n_distributions=self.objective.n_distributions,
        )
        if groups := self.groups():
            self.facts["parameter_groups"] = groups
        self.first_example = self._show_first() if os.environ.get("RANK", "0") == "0" else ""
        """The first row that the run trains on, as the trainer sees it; looked up again for what was cut of it."""

    def _find(self) -> Path:
        """The model's folder. Where a run that goes on finds it gone, that of what it has kept of it."""
        model, kept = self.config.model, Path(self.config.out) / KEPT_MODEL
        if self.config.checkpoints.resumes and not os.path.lexists(model) and weights.is_kept(kept):
            with contextlib.suppress(InputError):
                return find_folder(model)  # a hub id
            say(f"{model}: no such folder; what {self.config.out} has kept of it is used instead")
            model = str(kept)
        return find_folder(model)

    def _build_policy(self) -> Transformer:
        """The policy on the meta device, with all of its folder that epochs will need beside the weights."""
        out = Path(self.config.out)
        if weights.is_kept(self.folder) and self.folder != out / KEPT_MODEL:
            raise InputError(
                f"{self.folder}: has no weights, only what a run has kept of its model; give the model's own folder"
            )
        check_apart(out, self.folder)
        policy = weights.build(self.folder)
        start = None if self.adapting is None else self.adapting.start
        policy.beside = weights.read_beside(self.folder) if start is None else weights.files_beside(start, self.folder)
        policy.carried = weights.read_carried(policy, with_bytes=os.environ.get("RANK", "0") == "0")  # who writes them
        policy.head.keeps_logits = "kept-logits" not in self.config.measuring.disable
        weights.check(self.folder, policy)
        if self.adapting is not None:
            self.adapting.check_vocabulary(policy.config.vocab_size)
            self.adapting.attach(policy)
        return policy

    def _open_other(self, tokenizer: Tokenizer | None) -> OtherReference | None:
        """The reference where it is another model than what the policy starts as."""
        if self.adapting is not None and self.adapting.shares_base:
            return None if self.adapting.is_start else OtherReference(self.folder, self.policy.config, {})
        return open_reference(self.config.reference, self.folder, tokenizer, self.policy.config, self.objective)

    def build_reference(self, dtype: torch.dtype) -> tuple[Transformer, Path]:
        """A reference that is a model by itself, on the meta device, and the folder of its weights."""
        if self.adapting is not None and self.adapting.shares_base:
            return self.adapting.build_reference()
        return weights.build(self.reference_folder, dtype), self.reference_folder

    def _template_settings(self) -> TemplateSettings:
        """The flags of the template; a run that goes on takes the day that it began with."""
        data, began = self.config.data, None
        if self.config.checkpoints.resumes and data.template_date is None:
            began = day_of(Path(self.config.out))
        return data if began is None else replace(data, template_date=began)

    @property
    def _models(self) -> list[ModelConfig]:
        """The policy, and the other reference where there is one."""
        return [self.policy.config, *([] if self.other is None else [self.other.config])]

    @property
    def originals(self) -> tuple[int, ...]:
        """Lengths beyond which one of the run's models computes a whole sequence otherwise (LongRoPE)."""
        return tuple(sorted({n for model in self._models for n in model.originals}))

    @property
    def reference_folder(self) -> Path:
        """The folder of the reference's weights."""
        return self.folder if self.other is None else self.other.folder

    @property
    def day(self) -> str | None:
        """The day that the template writes; None where it writes none."""
        day = None if self.chat is None else self.chat.template.day
        return None if day is None else day.isoformat()

    @property
    def settings(self) -> dict[str, Any]:
        """What was found for settings that were left open, for config.yaml: the objective's, and the template's day."""
        return self.objective.settings | ({} if self.day is None else {"template_date": self.day})

    def _read(self, sources: tuple[str, ...], shares: tuple[float, ...] = ()) -> tuple[list[Example], dict[str, Any]]:
        data = self.config.data
        rows = read_examples(
            sources,
            self.chat,
            self.limits,
            self.reading,
            n_ids=self.policy.config.vocab_size,
            skip_bad_rows=data.skip_bad_rows,
            weights=shares,
            seed=data.seed,
        )
        examples = rows.examples
        if self.config.objective.own_score == "rejected":
            examples = [e._replace(ratings=e.ratings._replace(own=(e.ratings.scores or [None])[-1])) for e in examples]
        return examples, rows.facts()

    def _hold_out(self, rows: list[Example]) -> tuple[list[Example], list[Example]]:
        """The rows to train on, and those that are held out: other ones, or some of them."""
        data, measuring = self.config.data, self.config.measuring
        heldout: list[Example] = []
        if measuring.eval_data:
            heldout, facts = self._read((measuring.eval_data,))
            self.facts |= {f"eval_{name}": value for name, value in facts.items()}
        elif measuring.eval_pairs:
            rows, heldout = hold_out(rows, measuring.eval_pairs, data.seed)
        if len({(len(e.responses), e.label is None) for e in heldout}) > 1:
            named = measuring.eval_data or ", ".join(data.sources)
            raise InputError(
                f"{named}: held-out rows have to be of one kind; give only pairs, or only one form of single responses"
            )
        if heldout:
            self._count_repeated(rows, heldout)
        return rows, heldout

    def _prepare(self, rows: list[Example], heldout: list[Example]) -> tuple[list[Example], list[Example]]:
        """Both, with the tokens that were revised where the objective takes them. Raises InputError where it cannot be
        computed on them.
        """
        is_measured = bool(heldout) and self._has_form(heldout[0])
        if "revised" in self.objective.needs:
            rows = self._with_revised(rows)
            heldout = self._with_revised(heldout, "eval_") if is_measured else heldout
        check_objective(self.objective, self._in_form(rows))
        if is_measured:
            check_objective(self.objective, self._in_form(heldout))
        return rows, heldout

    def _count_repeated(self, rows: list[Example], heldout: list[Example]) -> None:
        """Held-out rows that are trained on too are counted, and said."""
        n, n_prompts = count_repeated(rows, heldout)
        self.facts |= {"heldout_rows_in_data": n, "heldout_prompts_in_data": n_prompts}
        if n_prompts:
            self.facts["heldout_report"] = (
                f"{n} of {len(heldout)} held-out rows are trained on too, and {n_prompts} share their prompt with a "
                "training row: what is measured on these is not held out"
            )

    def _with_revised(self, rows: list[Example], kind: str = "") -> list[Example]:
        """The rows with the tokens that were revised; how many pairs have none, because what an assistant says is the
        same in both and a tool's answers differ, is counted, and reported.
        """
        made = with_revised(rows, self.chat and self.chat.tokenizer)
        n = sum(not any(flags.any() for flags in e.revised or ()) for e in made)
        self.facts[f"{kind}pairs_without_revisions"] = n
        if n:
            self.facts[f"{kind}report"] += f", {n} pairs in which no token that is predicted was revised"
        return made

    def _in_form(self, rows: list[Example]) -> list[Example]:
        return in_form(rows, self.objective.form, side=self.objective.side)

    def _has_form(self, row: Example) -> bool:
        """Whether the objective can be computed on rows of that kind; of others no loss is measured."""
        try:
            return bool(self._in_form([row]))
        except InputError:
            return False

    def _check_measured(self) -> None:
        """Raises InputError where --keep-best or --early-stop name a number that held-out rows do not have."""
        named: dict[str, str] = {}
        if self.config.checkpoints.keep_best is not None:
            named["--keep-best"] = self.config.checkpoints.keep_best
        if self.config.measuring.patience is not None:
            named["--early-stop"] = self.config.measuring.patience[0]
        if named:
            names = heldout_names(self.objective, self.heldout)
            for flag, metric in named.items():
                check_name(flag, metric, names)

    def groups(self) -> list[str]:
        """The optimizer's groups of parameters in words; none where all parameters have the run's options."""
        if self.options is None:
            return []
        return describe(self.policy.trained(), self.options, optimizer=self.config.optimizer.name)

    def keep_model(self) -> None:
        """Keeps in the run's folder what it goes on with where the model's own is gone."""
        kept = Path(self.config.out) / KEPT_MODEL
        if not weights.is_kept(kept):
            stored = weights.stored_dtypes(self.folder)
            weights.keep(self.policy, kept, self.config.model, self.file_digests(self.folder), stored)

    def reference_digests(self, folder: Path) -> list[bytes]:
        """Of what the reference computes with: `file_digests`, and what an adapter's run makes of the base."""
        shares = self.adapting is not None and self.adapting.shares_base
        return [*self.file_digests(folder), *(self.adapting.digests() if shares and self.adapting else [])]

    def check_has_weights(self, plan: Plan, reference: ReferenceLogps, n_done: int) -> None:
        """Raises InputError where the run needs weights of the model whose folder is gone. n_done: steps of the state
        that it goes on from, which has the policy's.
        """
        if self.adapting is not None:
            weights.check_has_weights(self.folder, "the base of an adapter is read from it")
        stands = self.other is None and not reference.moves  # or else a state has it, or another folder
        if not n_done:
            why = "the run has no state to resume from"
        elif stands and self.heldout:
            why = "held-out rows are measured against it"
        elif stands and reference.is_used and not reference.is_final:
            why = "the reference's log-probs are computed from it"
        else:
            return
        weights.check_has_weights(self.folder, why)

    @property
    def report(self) -> str:
        """What was read, in a sentence."""
        return "; ".join(self.facts[name] for name in REPORTS if name in self.facts)

    def identity(self, ranks: Ranks) -> dict[str, Any]:
        """What has to be the same for a run to go on with this one."""
        made = identity(
            self.config,
            self.objective.settings,
            self.folder,
            self.examples,
            self.heldout,
            dtype=ranks.dtype,
            is_split=ranks.splits_masters,
            reference=self.reference_folder,
            read=self.file_digests,
        )
        made |= self.objective.digests
        made |= {} if self.adapting is None else self.adapting.identity()
        if "weights_report" in self.facts and self.objective.multiplies_by_weights:
            made["row weights"] = "multiply the loss"  # which they did not before there was such a sentence
        made |= {} if self.day is None else {DAY: self.day}
        made |= {"continued from": self.continued.digest()} if self.continued else {}
        if self.chat is not None and self.config.data.chat_template is not None:
            made["chat template"] = hashlib.sha256(self.chat.template.source.encode()).hexdigest()[:16]
        made |= {"parameter groups": "; ".join(groups)} if (groups := self.groups()) else {}
        return made | ({"stage": self.facts["stage"]} if "stage" in self.facts else {})

    def _show_first(self) -> str:
        first, data = self.steps.step(1).examples[0], self.config.data
        cut = find_cut(
            first.location, data.sources, self.chat, self.limits, self.reading, n_ids=self.policy.config.vocab_size
        )
        if not np.array_equal(cut.example.prompt, first.prompt):
            raise InputError(f"{first.location}: the file was changed while it was read; start again")
        return show(cut, self.chat)


def _part(rows: list[Example], part: int, n_parts: int) -> list[Example]:
    """One of n parts of the rows, of about one size, in order."""
    if n_parts > len(rows):
        raise InputError(f"--stages: {n_parts} stages need more than {len(rows)} rows; lower it")
    ends = np.linspace(0, len(rows), n_parts + 1).round().astype(int)
    return rows[ends[part] : ends[part + 1]]
