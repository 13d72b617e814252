"""Which model and rows a file for TRL names, how rows are cut, and which of them are held out."""

import re
from pathlib import Path
from typing import Any

from engine.config.trl.draft import Draft, as_number, as_truth, is_null, plain, shown

_FROM_A_FILE = "a template is read from a file here: write it into one, and give --chat-template FILE"
OF_MODEL = ("attn_implementation", "torch_dtype", "dtype", "trust_remote_code", "use_cache", "device_map",
            "low_cpu_mem_usage", "use_kernels")  # fmt: skip
"""What may stand in model_init_kwargs: names of weights' storage, which change nothing here."""


def translate_rows(draft: Draft) -> None:
    """--model, --data with its weights, --chat-template, the limits of tokens, --eval-data and --eval-pairs."""
    _model(draft)
    _data(draft)
    _limits(draft)


# --- the model -----------------------------------------------------------------------------------------------------


def _model(draft: Draft) -> None:
    name, revision = draft.take("model_name_or_path"), draft.take("model_revision")
    inside = draft.take("model_init_kwargs")
    if isinstance(inside, dict):
        revision = inside.pop("revision", revision)
        if unknown := [key for key in inside if key not in OF_MODEL]:
            draft.faults.append(f"model_init_kwargs: {', '.join(unknown)} is not supported here; remove it")
    draft.take("ref_model_init_kwargs")
    if draft.truth("trust_remote_code"):
        draft.leave("trust_remote_code", "no code of a model folder is ever run here")
    if name is not None:
        said, model = draft.named("model_name_or_path"), str(name)
        if not is_null(revision) and revision != "main":
            if _is_of_hub(model):
                model, said = f"{model}@{revision}", f"{said} and model_revision {revision}"
            else:
                draft.leave("model_revision", f"{model} is a folder")
        draft.put("model", model, said)
    if "chat_template" in draft.made and re.search(r"\{[{%]", str(draft.made["chat_template"])):
        draft.faults.append(f"chat_template: {_FROM_A_FILE}")
        del draft.made["chat_template"]


def _is_of_hub(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


# --- the rows ------------------------------------------------------------------------------------------------------


def _data(draft: Draft) -> None:
    mixtures = [name for name in ("dataset_mixture", "dataset_mixer", "datasets") if draft.has(name)]
    if len(mixtures) > 1:
        draft.faults.append(f"{' and '.join(mixtures)}: two mixtures; keep one")
        return
    test_split = draft.take("dataset_test_split")
    if mixtures:
        for name in ("dataset_name", "dataset_config", "dataset_train_split"):
            if draft.take(name) is not None:
                draft.leave(name, f"{mixtures[0]} is what is read there")
        {"dataset_mixture": _mixture, "dataset_mixer": _mixer, "datasets": _datasets}[mixtures[0]](draft)
    else:
        _single(draft)
    _held_out(draft, test_split)


def _single(draft: Draft) -> None:
    name, config, split = draft.take("dataset_name"), draft.take("dataset_config"), draft.take("dataset_train_split")
    if name is None:
        return
    parts = [f"{n}: {shown(v)}" for n, v in (("dataset_config", config), ("dataset_train_split", split)) if v]
    source = _source(str(name), config, "train" if split is None else str(split))
    draft.put("data", source, " and ".join([draft.named("dataset_name"), *parts]))


def _source(name: str, config: Any, split: str) -> str:
    """A data set's name with its configuration and split: NAME, NAME:SPLIT or NAME:CONFIG/SPLIT."""
    config = None if is_null(config) or config == "default" else str(config)
    if config is None and split == "train":
        return name
    return f"{name}:{split}" if config is None else f"{name}:{config}/{split}"


def _put_sources(draft: Draft, said: str, sources: list[str], weights: list[str]) -> None:
    draft.put("data", sources, said)
    if any(as_number(weight) != 1 for weight in weights):
        draft.put("data_weights", weights, f"{said.partition(':')[0]}: weights {shown(weights)}")


def _entries(draft: Draft, name: str, given: Any, known: tuple[str, ...]) -> list[dict[str, Any]]:
    """The mappings of a list, each with known names alone; anything else is a fault."""
    entries = given if isinstance(given, list) else [given]
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        draft.faults.append(f"{name}: is not a list of data sets, each with {', '.join(known)}; write it as one")
        return []
    for entry in entries:
        for key, value in entry.items():
            if key not in known and not is_null(value):
                draft.faults.append(f"{name}: {key} is not supported here ({shown(value)}); name files by --data")
        if known[0] not in entry:
            draft.faults.append(f"{name}: a data set without {known[0]}; name it")
            return []
    return entries


def _mixture(draft: Draft) -> None:
    """alignment-handbook's dataset_mixture: data sets with shares of their rows, and rows held out of all of them."""
    whole = draft.take("dataset_mixture")
    if not isinstance(whole, dict):
        draft.faults.append("dataset_mixture: is not a mapping with a list of datasets; write it as one")
        return
    known = ("id", "config", "split", "columns", "weight")
    entries = _entries(draft, "dataset_mixture", whole.get("datasets"), known)
    sources = [_source(str(e["id"]), e.get("config"), str(e.get("split", "train"))) for e in entries]
    weights = ["1" if is_null(e.get("weight")) else str(e["weight"]) for e in entries]
    if entries:
        _put_sources(draft, f"dataset_mixture: {len(entries)} data sets", sources, weights)
    if any(not is_null(e.get("columns")) for e in entries):
        draft.said.append("dataset_mixture: columns are found by their names here, --ignore-columns lets others go")
    if not is_null(whole.get("seed")):
        draft.said.append(f"dataset_mixture: seed {whole['seed']} is left out, rows are drawn by --seed here")
    draft.theirs.setdefault("test_split_size", whole.get("test_split_size"))
    for key in whole.keys() - {"datasets", "seed", "test_split_size"}:
        draft.faults.append(f"dataset_mixture: {key} is not supported here; remove it")


def _mixer(draft: Draft) -> None:
    """alignment-handbook's dataset_mixer of before: NAME: SHARE, with dataset_splits for all."""
    mixer, splits = draft.take("dataset_mixer"), draft.take("dataset_splits")
    configs = draft.take("dataset_configs")
    if not isinstance(mixer, dict):
        draft.faults.append("dataset_mixer: is not a mapping of names to shares; write NAME: SHARE")
        return
    splits = splits if isinstance(splits, list) else ["train", "test"] if splits is None else [splits]
    configs = configs if isinstance(configs, list) else [configs] * len(mixer)
    train = [str(split) for split in splits if "train" in str(split)]
    tests = [str(split) for split in splits if "test" in str(split)]
    pairs = list(zip(mixer, configs, strict=False))
    sources = [_source(name, config, split) for name, config in pairs for split in train]
    weights = [str(mixer[name]) for name, _ in pairs for _ in train]
    if sources:
        _put_sources(draft, draft.named("dataset_mixer"), sources, weights)
    else:
        draft.faults.append(f"dataset_splits: {shown(splits)} has no split called train; name one by --data NAME:SPLIT")
    if len(pairs) == len(tests) == 1:
        draft.theirs["dataset_test_split"], draft.theirs["dataset_name"] = tests[0], pairs[0][0]
        draft.take("dataset_test_split", "dataset_name")


def _datasets(draft: Draft) -> None:
    """TRL's own mixture: `datasets`, one behind the other."""
    known = ("path", "name", "split", "columns")
    entries = _entries(draft, "datasets", draft.take("datasets"), known)
    sources = [_source(str(e["path"]), e.get("name"), str(e.get("split", "train"))) for e in entries]
    if entries:
        _put_sources(draft, f"datasets: {len(entries)} data sets", sources, [])
    if any(not is_null(e.get("columns")) for e in entries):
        draft.said.append("datasets: columns are found by their names here, --ignore-columns lets others go")


# --- what is held out ----------------------------------------------------------------------------------------------


def is_evaluated(draft: Draft) -> bool:
    """Whether the file asks for measurements of held-out rows."""
    given = draft.look("eval_strategy") or draft.look("evaluation_strategy") or "no"
    return as_truth(given) is not False


def _held_out(draft: Draft, test_split: Any) -> None:
    size = draft.number("test_split_size")
    if size is not None and size > 0:
        draft.put("eval_pairs", plain(size), f"test_split_size: {shown(draft.theirs['test_split_size'])}")
        return
    test_split = draft.look("dataset_test_split") if test_split is None else test_split
    name = draft.look("dataset_name")
    if not is_evaluated(draft):
        if test_split is not None:
            draft.leave("dataset_test_split", "eval_strategy is no")
        return
    if test_split is not None and name is not None and not {"eval_data", "eval_pairs"} & {*draft.typed, *draft.made}:
        source = _source(str(name), draft.look("dataset_config"), str(test_split))
        draft.put("eval_data", source, f"dataset_test_split: {test_split}")
    elif not {"eval_data", "eval_pairs"} & {*draft.typed, *draft.made}:
        where = "FILE" if name is None else _source(str(name), draft.look("dataset_config"), "test")
        strategy = "eval_strategy" if draft.has("eval_strategy") else "evaluation_strategy"
        draft.refuse(
            strategy,
            f"asks for measurements, and nothing is held out: name rows by --eval-data {where}, or --eval-pairs N",
        )


# --- how rows are cut ----------------------------------------------------------------------------------------------


def _limits(draft: Draft) -> None:
    """--max-tokens and what stands beside it, by the two rules of TRL's trainers."""
    whole, prompt = _limit(draft, "max_length"), _limit(draft, "max_prompt_length")
    response = _limit(draft, "max_completion_length")
    if whole is not None and prompt is not None and prompt >= whole > 0:
        draft.faults.append(
            f"max_length: {whole} and max_prompt_length: {prompt} leave no room for a response; raise the first, or "
            "lower the second"
        )
        return
    if whole is not None:
        draft.put("max_tokens", str(whole), f"max_length: {shown(draft.theirs['max_length'])}")
    elif "max_tokens" not in draft.made:
        draft.default("max_tokens", "1024")
    if prompt:
        draft.put("max_prompt_tokens", str(prompt), draft.named("max_prompt_length"))
    if response:
        draft.put("max_response_tokens", str(response), draft.named("max_completion_length"))
    _truncation(draft)


def _limit(draft: Draft, name: str) -> int | None:
    """A limit of tokens; 0 where it is named as none, None where it is not named."""
    if name in draft.theirs and is_null(draft.theirs[name]):
        draft.take(name)
        return 0
    number = draft.number(name)
    if number is not None and (number != int(number) or number == 0):
        draft.refuse(name, "has to be a whole number above 0")
        return None
    return None if number is None else max(0, int(number))  # -1 is none, too


def _truncation(draft: Draft) -> None:
    """--keep-prompt, where prompts have a limit of their own; else of a whole sequence the start is kept here."""
    mode = draft.take("truncation_mode")
    if mode is None:
        return
    if mode not in ("keep_start", "keep_end"):
        draft.refuse("truncation_mode", "is not supported here; use one of keep_end, keep_start")
    elif "max_prompt_tokens" in draft.made or "max_prompt_tokens" in draft.typed:
        draft.put("keep_prompt", mode.removeprefix("keep_"), draft.named("truncation_mode"))
    elif draft.made.get("max_tokens") == "0":
        return
    elif mode == "keep_end":
        draft.refuse(
            "truncation_mode",
            "is not supported with max_length alone, which cuts the end of a sequence here; add max_prompt_length, "
            "which cuts prompts (--max-prompt-tokens), or remove it",
        )
    else:
        draft.said.append(f"{draft.named('truncation_mode')} is what --max-tokens alone does here, by which sequences "
                          "lose their end")  # fmt: skip
