"""Settings of TRL that no subject translates: those that change nothing here, whatever they say, and all others.

Of the others a value that is the default of some version changes nothing either; any other value has to be taken out.
"""

from engine.config.trl.adapting import NO_DORA, NO_DROPOUT
from engine.config.trl.defaults import OF_ALL, OF_TRAINER, Trainer
from engine.config.trl.draft import Draft, as_truth, is_null, same

_WITHOUT_WEIGHT = {  # why -> names
    "every step is logged": (
        *("logging_steps", "logging_strategy", "logging_first_step", "logging_nan_inf_filter", "logging_dir"),
        *("log_level", "log_level_replica", "log_on_each_node", "disable_tqdm", "skip_memory_metrics", "debug"),
        *("include_tokens_per_second", "include_num_input_tokens_seen", "include_for_metrics"),
        *("include_inputs_for_metrics", "tpu_metrics_debug", "run_name", "project", "trackio_space_id"),
        *("trackio_bucket_id", "trackio_static_space_id"),
    ),
    "held-out rows are packed as --micro-tokens allows": (
        *("per_device_eval_batch_size", "per_gpu_eval_batch_size", "eval_accumulation_steps", "batch_eval_metrics"),
        *("eval_do_concat_batches", "eval_use_gather_object", "prediction_loss_only", "use_legacy_prediction_loop"),
        *("bf16_full_eval", "fp16_full_eval", "precompute_ref_batch_size"),
    ),
    "held-out rows are measured before the first step, and where --eval-every says": (
        *("do_eval", "eval_on_start", "eval_delay"),
    ),
    "a command trains, or does something else": ("do_train", "do_predict"),
    "answers are sampled by python -m engine.generate": ("generate_during_eval",),
    "a checkpoint is whole, in safetensors, and what --resume needs lies beside it": (
        *("save_only_model", "save_safetensors", "save_on_each_node", "overwrite_output_dir", "enable_jit_checkpoint"),
        *("restore_callback_states_from_checkpoint", "ignore_data_skip"),
    ),
    "folders are published by python -m engine.publish": (
        *("hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push", "hub_revision"),
        *("hub_model_revision", "push_to_hub_model_id", "push_to_hub_organization", "push_to_hub_token"),
    ),
    "memory is bounded by --micro-tokens and --recompute-blocks": (
        *("gradient_checkpointing", "gradient_checkpointing_kwargs", "gradient_checkpointing_use_reentrant"),
        *("activation_checkpointing", "activation_checkpointing_kwargs", "activation_offloading"),
        *("torch_empty_cache_steps", "use_cache", "use_logits_to_keep", "use_num_logits_to_keep"),
    ),
    "the engine brings its own attention, head and compiled blocks": (
        *("attn_implementation", "use_liger_kernel", "use_liger_loss", "liger_kernel_config", "torch_compile"),
        *("torch_compile_backend", "torch_compile_mode", "torchdynamo", "jit_mode_eval", "use_ipex", "tf32"),
        *("base_model_attribute_name",),
    ),
    "nothing is padded": ("padding_free", "pad_to_multiple_of", "padding_value", "pad_token", "label_pad_token_id"),
    "rows are read whole and encoded before the first step, on all cores": (
        *("dataset_num_proc", "preprocessing_num_workers", "dataset_streaming", "streaming", "remove_unused_columns"),
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "dataloader_in_order"),
        *("dataloader_persistent_workers", "dataloader_multiprocessing_context", "label_names", "length_column_name"),
    ),
    "ranks are torchrun's, sharding is PyTorch's own": (
        *("deepspeed", "fsdp", "fsdp_config", "fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap"),
        *("local_rank", "ddp_backend", "ddp_broadcast_buffers", "ddp_bucket_cap_mb", "ddp_find_unused_parameters"),
        *("ddp_static_graph", "ddp_timeout", "dispatch_batches", "tpu_num_cores", "mp_parameters", "_n_gpu"),
        *("ignore_bias_buffers", "parallelism_config", "ray_scope"),
    ),
    "the device is the one that is there": ("use_cpu", "no_cuda", "use_mps_device"),
    "a step is a mean over its examples, whatever the ranks": ("average_tokens_across_devices", "past_index"),
    "models here have no dropout and no experts": ("disable_dropout", "router_aux_loss_coef"),
    "a run is the same every time on the same machine": ("full_determinism",),
    "numbers are bfloat16 or float32": ("half_precision_backend", "fp16_backend", "fp16_opt_level"),
    "only encoder-decoders read it": ("max_target_length",),
    "a run has one adapter, and its reference another one or none": ("model_adapter_name", "ref_adapter_name"),
}
WEIGHTLESS = {name: why for why, names in _WITHOUT_WEIGHT.items() for name in names}
"""Settings that change nothing here whatever they say, and why."""

REFUSED: dict[str, str] = {
    "lora_dropout": NO_DROPOUT,
    "use_dora": NO_DORA,
    "lora_target_parameters": "is not supported: adapters are of linear layers here; remove it",
    "adafactor": "is not supported; remove it, and name optim: adamw_torch (--optimizer adamw)",
    "auto_find_batch_size": "is not supported: a batch is what --batch-size says; remove it",
    "dataloader_drop_last": "is not supported: the last step of an epoch takes the rows that are left; remove it",
    "force_use_ref_model": "is not read: beside an adapter the reference is the base, or the adapter "
    "as it starts; remove it, and name --reference-model",
    "group_by_length": "is not supported: rows come in the order of --seed, whatever their length; remove it",
    "is_encoder_decoder": "is not supported: models here are decoders; remove it",
    "label_smoothing_factor": "is not supported: labels are taken as they are; remove it",
    "neftune_noise_alpha": "is not supported: embeddings have no noise here; remove it",
    "reference_free": "is --loss cpo with --cpo.alpha 0 here; remove it, and name loss: cpo and cpo.alpha: 0",
    "sanity_check": "trains on 1,000 rows there; remove it, and name a smaller file, or --data-weights",
    "split_batches": "is not supported: per_device_train_batch_size is of one process here; remove it",
    "tools": "is not supported: tools stand in the rows' column of that name here; remove it",
    "optim_args": "is not read; remove it, AdamW's are --adam-beta1 --adam-beta2 --adam-epsilon",
    "optim_target_modules": "belongs to GaLore and other optimizers, which are not supported here; remove it",
    "resume_from_checkpoint": "is not supported: a run is resumed in its own folder, by --resume; remove it",
}
"""What is said of settings that have to be taken out, from the verb on."""
_KNOWN_FROM: dict[Trainer, tuple[str, ...]] = {  # names by which a file tells for which trainer it is
    "kto": ("desirable_weight", "undesirable_weight"),
    "cpo": ("cpo_alpha", "simpo_gamma", "alpha"),
    "dpo": (
        *("loss_weights", "ld_alpha", "use_weighting", "f_divergence_type", "f_alpha_divergence_coef"),
        *("discopop_tau", "rpo_alpha", "reference_free", "force_use_ref_model"),
    ),
}


def trainer_of(names: list[str]) -> tuple[Trainer, str] | None:
    """The trainer that alone has one of these names, and the name; None where none tells."""
    return next(((t, name) for name in names for t, known in _KNOWN_FROM.items() if name in known), None)


def sort_out(draft: Draft) -> None:
    """What no subject has taken, and is not without weight, has to change."""
    for name in draft.left:
        value = draft.theirs[name]
        is_off = as_truth(value) is False
        if name in WEIGHTLESS or is_null(value) or is_off or _is_default(name, value):
            continue
        if (owner := trainer_of([name])) and owner[0] != draft.trainer:
            draft.refuse(
                name,
                f"belongs to TRL's {owner[0].upper()} trainer, and this file is read as one for "
                f"{draft.trainer.upper()}; "
                f"remove it, or give --trl-trainer {owner[0]}",
            )
        else:
            draft.refuse(name, REFUSED.get(name, "is not supported here; remove it"))


def _is_default(name: str, value: object) -> bool:
    """Whether a value is what some version has where the name is not given."""
    return any(same(value, known) for table in (*OF_ALL, *OF_TRAINER.values()) for known in table.get(name, ()))
