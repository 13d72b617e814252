"""What holds for all tests."""

import os
import signal

# A script's background job ignores Ctrl-C, and what nohup starts a closed terminal: no trap in launch.sh would hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The proofs are in float32 and float64 on the CPU, wherever they run; those of tests/gpu run by ./launch.sh gpu-checks.
if os.environ.get("TESTS_ON") != "gpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
from hypothesis import settings

from losses import registry

settings.register_profile("untimed", deadline=None)  # how long an example takes depends on what else the machine does
settings.load_profile("untimed")


@pytest.fixture
def registered(monkeypatch):
    """The registry, and what it held before: what a test adds to it is gone afterwards."""
    for name in ("_losses", "_aliases", "_files"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))


SLOW_CASES = {
    "test_two_ranks_equal_one": {"llama3.2"},
    "test_what_a_model_says_is_the_same_ids_as_text_again": {"ranks"},
    "test_a_template_places_control_tokens_and_content_does_not": {"ranks"},
    "test_a_run_that_is_stopped_takes_in_what_was_asked": {"1-129", "15-143"},
    "test_a_template_that_takes_too_much_is_stopped_and_named": {"a huge power", "only in a second turn"},
    "test_what_cannot_be_written_ends_in_one_sentence": {"a log that cannot be written", "a screen that is full"},
    "test_the_words_of_models_are_never_markup": {"guarded-<!--<script>"},
    "test_two_runs_of_two_epochs_are_one_of_four": {"adamw", "split"},
    "test_a_run_that_is_stopped_goes_on_with_its_table": {"by_tokens"},
    "test_a_run_that_stops_after_every_step_is_the_same_run": {"precompute"},
    "test_a_run_stopped_and_gone_on_with_ends_at_the_same_bits": {"settings1"},
    "test_a_damaged_cache_is_never_used": {"cut"},
    "test_a_disk_that_fills_stops_the_run_and_it_goes_on_when_there_is_room": {"600k"},
    "test_an_error_is_told_by_a_rank_that_no_rank_0_speaks_for": {r"input-2-error: rows.jsonl:3: not JSON\n"},
    "test_a_tool_finds_nothing": {"basedpyright"},
    "test_decoding_gives_every_text_back": {"False-ranks"},
    "test_bad_input_ends_in_2_with_one_sentence": {"one process"},
    "test_what_an_earlier_start_left_is_found_and_ended": {"600.0-0.5-False"},
    "test_a_server_is_waited_for_and_ended": {"path/to/model-path/to/model"},
    "test_copies_give_the_bits_of_fsdp_on_one_rank": {
        "micro_tokens-recompute_blocks",
        "optimizer-weight_decay-loss-reference",
        "reference-loss",
        "loss-micro_tokens",
    },
    "test_packing_and_sharing_the_prompt_change_nothing": {"7-dense-llama3.2", "7-by document-llama3.2"},
    "test_micro_batches_change_nothing": {
        *("aot", "aot_unpaired", "apo_down", "apo_down_revised", "apo_down_unpaired", "apo_select", "apo_up"),
        *("bco_pair", "cdpo", "cpo", "discopop", "dpo_revised", "dpo_shift", "dpop", "dro", "dro_ranked", "exo"),
        *("exo_ranked", "hinge", "infonca", "ipo", "kto_pair", "ln_dpo", "lpo", "nca", "nca_ranked", "odpo", "orpo"),
        *("r_dpo", "robust_dpo", "simper", "slic", "sppo", "tdpo1", "wpo_sequence"),
    },
    "test_greedy_answers_equal_those_of_transformers": {
        *("llama2-1", "llama3-1", "llama3-4", "llama2-9", "llama3.1-4", "llama3-9", "llama3.2-1", "llama3.2-4"),
    },
    "test_what_waiting_does_not_mend_stops_the_run_at_once": {
        *("403-None", "402-None", "429-organization_usage_limit_exceeded", "429-project_spend_limit_exceeded"),
        "429-credit_balance_exhausted",
    },
}
"""Cases of a test that the fast set does without, since another case of the same test is in it."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks those cases slow. What the command line deselects comes after."""
    for item in items:
        spec = getattr(item, "callspec", None)
        if spec is not None and spec.id in SLOW_CASES.get(item.originalname, ()):
            item.add_marker(pytest.mark.slow)
