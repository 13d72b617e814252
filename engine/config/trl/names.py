"""TRL's names of settings in ours, for a YAML file that was written for one of its trainers: dpo, kto, orpo or cpo.

    file -> which trainer -> subject by subject -> what is left -> our settings, and what is said

Every translation is said aloud. What has to change is said all at once, what changes nothing in one line, and so are
the defaults of the trainer that the file leaves as they are.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, get_args

from engine.config.train_config import ALIASES, FLAGS
from engine.config.trl.adapting import translate_adapter
from engine.config.trl.defaults import OF_TRAINER, TRL_VERSION, Trainer
from engine.config.trl.draft import NAMES, Draft, Settings, as_number, is_null, shown
from engine.config.trl.keeping import translate_keeping
from engine.config.trl.objective import trainer_of_loss, translate_objective
from engine.config.trl.rows import translate_rows
from engine.config.trl.training import translate_training
from engine.config.trl.weightless import REFUSED, WEIGHTLESS, sort_out, trainer_of
from system import InputError

COUNTERPARTS = {
    **dict.fromkeys(
        ("per_device_train_batch_size", "gradient_accumulation_steps", "per_gpu_train_batch_size"),
        "--batch-size, examples per step over all processes",
    ),
    "model_name_or_path": "--model",
    "model_revision": "--model NAME@REVISION",
    "dataset_name": "--data",
    "dataset_config": "--data NAME:CONFIG/SPLIT",
    "dataset_train_split": "--data NAME:SPLIT",
    "dataset_test_split": "--eval-data NAME:SPLIT",
    **dict.fromkeys(("dataset_mixture", "dataset_mixer", "datasets"), "--data with --data-weights"),
    "test_split_size": "--eval-pairs",
    "output_dir": "--out",
    "learning_rate": "--lr",
    "num_train_epochs": "--epochs",
    "optim": "--optimizer",
    "lr_scheduler_type": "--schedule",
    "lr_scheduler_kwargs": "--min-lr-ratio, or --decay-ratio",
    "loss_type": "--loss",
    "loss_weights": "--loss NAME:WEIGHT,NAME:WEIGHT",
    "ld_alpha": "--ld_dpo.alpha, of --loss ld_dpo",
    "use_weighting": "--loss wpo",
    "f_divergence_type": "--f_dpo.divergence, of --loss f_dpo",
    "f_alpha_divergence_coef": "--f_dpo.alpha, which is 1 minus it",
    "discopop_tau": "--discopop.tau",
    "rpo_alpha": "--loss dpo:1,sft:ALPHA",
    "label_smoothing": "--NAME.label_smoothing, of --loss robust_dpo, exo, aot, aot_unpaired or cdpo",
    "cpo_alpha": "--cpo.alpha, of --loss cpo",
    "simpo_gamma": "--simpo.gamma, of --loss simpo",
    "desirable_weight": "--kto.desirable_weight",
    "undesirable_weight": "--kto.undesirable_weight",
    "max_length": "--max-tokens",
    "max_prompt_length": "--max-prompt-tokens",
    "max_completion_length": "--max-response-tokens",
    "truncation_mode": "--keep-prompt",
    "bf16": "--dtype",
    "fp16": "--dtype",
    "torch_dtype": "--dtype",
    "precompute_ref_log_probs": "--reference precompute",
    "sync_ref_model": "--reference-update soft",
    "ref_model_mixup_alpha": "--reference-update-alpha",
    "ref_model_sync_steps": "--reference-update-steps",
    "data_seed": "--seed",
    "train_sampling_strategy": "--no-shuffle, or nothing,",
    "eval_strategy": "--eval-data or --eval-pairs",
    "evaluation_strategy": "--eval-data or --eval-pairs",
    "eval_steps": "--eval-every",
    "save_strategy": "--save-every",
    "save_steps": "--save-every",
    "load_best_model_at_end": "--keep-best METRIC",
    "metric_for_best_model": "--keep-best METRIC",
    "report_to": "--track",
    "push_to_hub": "python -m engine.publish",
    "resume_from_checkpoint": "--resume",
    "use_peft": "--lora-rank 16, of every layer where --lora-targets are unset,",
    "lora_r": "--lora-rank",
    "lora_target_modules": "--lora-targets",
    "lora_modules_to_save": "--train-also",
    "use_rslora": "--lora-rslora",
    "load_in_4bit": "--base-dtype nf4",
    "load_in_8bit": "--base-dtype int8",
    "bnb_4bit_quant_type": "--base-dtype nf4, and no other kind of 4 bits,",
    "bnb_4bit_compute_dtype": "--dtype",
}
"""What TRL's settings are called here, for those who type them."""
IDLE = WEIGHTLESS | {
    **dict.fromkeys(
        ("use_bnb_nested_quant", "bnb_4bit_use_double_quant", "bnb_4bit_quant_storage"),
        "it only concerns the memory of 4-bit weights",
    ),
    "lora_task_type": "models here predict tokens",
}
"""Why others of them change nothing, for the same."""


def translate(settings: Settings, say: Callable[[str], None], typed: Mapping[str, str] | None = None) -> Settings:
    """Settings with TRL's names put into ours; what is done is handed to `say`, sentence by sentence.

    typed: flags of the command line ("-" as "_") and their values, which win over the file. A file without a name of
    TRL's is given back as it is. Raises InputError that lists all that has to change.
    """
    typed = typed or {}
    given = {name.replace("-", "_"): value for name, value in settings.items()}
    if not any(_is_theirs(name, value) for name, value in given.items()):
        if "trl_trainer" in typed:
            raise InputError("--trl-trainer: the file has no settings with TRL's names; leave the flag out")
        return {name: value for name, value in given.items() if not _says_nothing(name, value)}
    theirs = {name: value for name, value in given.items() if name in NAMES}
    ours = {n: v for n, v in given.items() if n not in NAMES and _is_ours(n) and not _says_nothing(n, v)}
    trainer, why = _trainer(theirs, typed.get("trl_trainer") or given.get("trl_trainer"))
    draft = Draft(theirs, ours, typed, trainer)
    translate_rows(draft)
    translate_objective(draft)
    translate_training(draft)
    translate_adapter(draft)
    _reference(draft)
    translate_keeping(draft)
    if (out := draft.take("output_dir")) is not None:
        draft.put("out", out, draft.named("output_dir"))
    sort_out(draft)
    draft.faults += [_unknown(name) for name in given if name not in NAMES and not _is_ours(name)]
    if draft.faults:
        raise InputError(_listed(draft.faults))
    say(f"read as a file of TRL's {trainer.upper()} trainer, {why}")
    for sentence in draft.said:
        say(sentence)
    if idle := draft.idle:
        say(f"changes nothing here: {', '.join(idle)}")
    if draft.defaults:
        say(f"not named, so that the defaults of TRL {TRL_VERSION} for {trainer} apply: {' '.join(draft.defaults)}")
    return draft.made


def counterpart(name: str) -> str | None:
    """What to say of a flag with one of TRL's names, behind that; None where it is none."""
    if name in COUNTERPARTS:
        return f"is {COUNTERPARTS[name]} here"
    if name in IDLE:
        return f"changes nothing here: {IDLE[name]}; leave it out"
    if name in REFUSED:
        return f"{REFUSED[name].removesuffix('; remove it')}; leave it out, and see --help"
    return "is not a flag here; leave it out, and see --help" if name in NAMES else None


def _is_ours(name: str) -> bool:
    return name in FLAGS or name in {*ALIASES.names, *ALIASES.former} or "." in name


def _is_theirs(name: str, value: Any) -> bool:
    """Whether a setting tells that a file is for TRL: by its name, or by a value that only TRL takes."""
    if name in NAMES and not _is_ours(name):
        return not (is_null(value) and name in ("datasets", "tools", "project", "alpha"))
    number = as_number(value)
    if name == "max_steps":
        return number is not None and number < 0
    if name == "warmup_steps":
        return number is not None and 0 < number < 1
    return name == "dtype" and value in ("auto", "float16")


def _says_nothing(name: str, value: Any) -> bool:
    """Whether a value of one of our settings is none; the word "none" is a value of some."""
    if isinstance(value, str) and value.lower() == "none":
        return name not in FLAGS or value not in _choices(FLAGS[name].kind)
    return is_null(value)


def _choices(kind: Any) -> set[Any]:
    """All words that a type names as values."""
    parts = get_args(kind)
    return {part for part in parts if isinstance(part, str)}.union(*map(_choices, parts)) if parts else set()


def _trainer(theirs: Settings, asked: str | None) -> tuple[Trainer, str]:
    """Which trainer a file is for, and how that is known. Raises InputError for one that is not there."""
    known: dict[str, Trainer] = {name: name for name in OF_TRAINER}
    if asked is not None:
        if asked not in known:
            raise InputError(f"--trl-trainer: {asked} is not one of {', '.join(known)}")
        return known[asked], "as --trl-trainer says"
    named = [name for name, value in theirs.items() if not is_null(value)]
    if found := trainer_of(named):
        return found[0], f"since only that one has {found[1]}; --trl-trainer chooses another"
    if (trainer := trainer_of_loss(theirs.get("loss_type"))) is not None:
        return trainer, f"since only that one has loss_type {shown(theirs['loss_type'])}; --trl-trainer chooses another"
    return "dpo", "since it does not say which; --trl-trainer chooses another (kto, orpo, cpo)"


def _reference(draft: Draft) -> None:
    """--reference precompute, and the flags of a reference that follows."""
    if draft.truth("precompute_ref_log_probs"):
        draft.put("reference", "precompute", draft.named("precompute_ref_log_probs"))
    follows = draft.truth("sync_ref_model")
    if follows:
        draft.put("reference_update", "soft", draft.named("sync_ref_model"))
    names = {"ref_model_mixup_alpha": "reference_update_alpha", "ref_model_sync_steps": "reference_update_steps"}
    for theirs, ours in names.items():
        value = draft.take(theirs)
        if value is not None and (follows or "reference_update" in {*draft.made, *draft.typed}):
            draft.put(ours, value, draft.named(theirs))


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, {*NAMES, *FLAGS}, n=1)
    return f"there is no setting {name!r}" + (f"; perhaps {near[0]!r}" if near else " here or in TRL; remove it")


def _listed(faults: list[str]) -> str:
    faults = list(dict.fromkeys(faults))
    if len(faults) == 1:
        return faults[0]
    return f"{len(faults)} things have to change\n" + "\n".join(f"  {fault}" for fault in faults)
