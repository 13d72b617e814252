"""How much of a row is used: each rule against TRL's own functions, and against the rule written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.rows import Limits, Record, RowSettings, TooLong, encode
from system import InputError

# What TRL makes of random lengths (prompt, chosen, rejected): how many tokens stay of each.
OF_TRL_0_9 = [  # by (max_length, max_prompt_length), truncation_mode: DPOTrainer.tokenize_row of 0.9.6
    ((18, 7, 9), (11, 4), "end", (4, 7, 7)),
    ((14, 8, 8), (20, 16), "end", (14, 4, 4)),
    ((5, 8, 8), (16, 4), "end", (5, 8, 8)),
    ((3, 5, 15), (16, 5), "start", (3, 5, 11)),
    ((6, 18, 18), (21, 6), "start", (6, 15, 15)),
    ((15, 6, 8), (19, 9), "end", (9, 6, 8)),
    ((9, 4, 18), (24, 11), "start", (9, 4, 13)),
    ((19, 15, 7), (21, 5), "end", (5, 15, 7)),
    ((2, 15, 17), (15, 3), "start", (2, 12, 12)),
    ((9, 14, 18), (12, 8), "end", (8, 4, 4)),
    ((10, 20, 8), (13, 4), "start", (4, 9, 8)),
    ((7, 3, 12), (10, 3), "start", (3, 3, 7)),
    ((4, 17, 6), (20, 14), "start", (4, 6, 6)),
    ((18, 16, 20), (18, 5), "start", (5, 13, 13)),
]
OF_TRL_1_16 = [  # by max_length: DPOTrainer's filter of prompts and its DataCollatorForPreference; None: left out
    ((12, 3, 9), 7, None),
    ((4, 3, 11), 9, (4, 3, 5)),
    ((13, 7, 4), 18, (13, 5, 4)),
    ((3, 7, 3), 10, (3, 7, 3)),
    ((10, 4, 4), 8, None),
    ((7, 4, 2), 4, None),
    ((7, 6, 12), 7, None),
    ((3, 9, 9), 8, (3, 5, 5)),
    ((10, 4, 11), 12, (10, 2, 2)),
    ((3, 4, 1), 18, (3, 4, 1)),
]


def row(prompt, chosen, rejected, first=0):
    """A record of ids that say where they stood, chosen from 1,000 on and rejected from 2,000 on."""
    ids = [tuple(range(a, a + n)) for a, n in ((first, prompt), (1000, chosen), (2000, rejected))]
    return Record("rows.jsonl:1", "pairs", ids[0], (ids[1], ids[2]))


def cut(record, limits):
    """What is left of a record, or what is wrong with it."""
    (made,) = encode([record], None, limits, n_ids=3000)
    if isinstance(made, InputError):
        return made
    return [ids.tolist() for ids in (made.example.prompt, *made.example.responses)]


@pytest.mark.parametrize(("sizes", "limits", "keep", "left"), OF_TRL_0_9)
def test_both_limits_are_the_rule_of_trl_0_9(sizes, limits, keep, left):
    settings = RowSettings(max_tokens=limits[0], max_prompt_tokens=limits[1], keep_prompt=keep)
    found = cut(row(*sizes), settings.limits)
    start = sizes[0] - left[0] if keep == "end" else 0
    assert found == [list(range(a, a + n)) for a, n in zip((start, 1000, 2000), left, strict=True)]


@pytest.mark.parametrize(("sizes", "limit", "left"), OF_TRL_1_16)
def test_the_limit_of_all_tokens_alone_is_the_rule_of_trl_1_16(sizes, limit, left):
    found = cut(row(*sizes), RowSettings(max_tokens=limit).limits)
    if left is None:
        assert isinstance(found, TooLong)
        assert str(found) == (
            f"rows.jsonl:1: a prompt of {sizes[0]} tokens leaves nothing of --max-tokens {limit} for a response; raise "
            "it, or have prompts cut: --max-prompt-tokens"
        )
    else:
        assert found == [list(range(a, a + n)) for a, n in zip((0, 1000, 2000), left, strict=True)]


@pytest.mark.slow
def test_random_ids_are_cut_as_the_installed_trl_cuts_them():
    collator = pytest.importorskip("trl.trainer.dpo_trainer").DataCollatorForPreference
    rng = np.random.default_rng(0)
    n_cut = 0
    for _ in range(300):
        prompt, chosen, rejected = (rng.integers(1, 100, rng.integers(1, 30)).tolist() for _ in range(3))
        limit = int(rng.integers(2, 50))
        record = Record("rows.jsonl:1", "pairs", tuple(prompt), (tuple(chosen), tuple(rejected)))
        found = cut(record, RowSettings(max_tokens=limit).limits)
        if len(prompt) >= limit:
            assert isinstance(found, TooLong)
            continue
        batch = collator(pad_token_id=0, max_length=limit)(
            [{"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}]
        )
        theirs = [
            (ids[(seen - completion).bool()].tolist(), ids[completion.bool()].tolist())
            for ids, seen, completion in zip(*(batch[k] for k in ("input_ids", "attention_mask", "completion_mask")))  # noqa: B905
        ]
        if theirs[0][1] == theirs[1][1]:
            assert isinstance(found, InputError)  # the same ids after the cut
            continue
        assert theirs == [(found[0], found[1]), (found[0], found[2])]
        n_cut += len(found[1]) < len(chosen)
    assert n_cut > 20


SIZES = st.tuples(st.integers(1, 40), st.lists(st.integers(1, 40), min_size=1, max_size=3))


@given(SIZES, st.integers(2, 60), st.integers(1, 59), st.none() | st.integers(1, 40))
def test_rules_written_out(sizes, most, most_prompt, most_response):
    prompt, responses = sizes
    named = [r if most_response is None else min(r, most_response) for r in responses]
    alone = Limits(prompt_tokens=None, response_tokens=most_response, tokens=most)
    if prompt < most:
        left = alone.sizes(prompt, responses)
        assert left == (prompt, [min(r, most - prompt) for r in named])
    else:
        with pytest.raises(TooLong):
            alone.sizes(prompt, responses)
    if most_prompt < most:
        both = Limits(prompt_tokens=most_prompt, response_tokens=most_response, tokens=most)
        n, left = both.sizes(prompt, responses)
        assert n + max(left) <= most
        fits = prompt + max(named) <= most
        assert n == (prompt if fits else min(prompt, most_prompt))
        still_fits = n + max(named) <= most
        assert left == (named if still_fits else [min(r, most - most_prompt) for r in named])


def test_what_is_named_and_what_is_not():
    for given_, expected in (
        ({}, (512, 512, None)),
        ({"max_prompt_tokens": 7}, (7, 512, None)),
        ({"max_response_tokens": 7}, (512, 7, None)),
        ({"max_tokens": 9}, (None, None, 9)),
        ({"max_tokens": 9, "max_response_tokens": 7}, (None, 7, 9)),
        ({"max_tokens": 9, "max_prompt_tokens": 7}, (7, None, 9)),
        ({"max_tokens": 0}, (None, None, None)),
        ({"max_tokens": 0, "max_prompt_tokens": 7}, (7, None, None)),
        ({"max_tokens": 0, "max_response_tokens": 7}, (None, 7, None)),
    ):
        limits = RowSettings(**given_).limits
        assert (limits.prompt_tokens, limits.response_tokens, limits.tokens) == expected, given_


def test_no_limit_leaves_everything_but_what_is_beyond_the_context():
    settings = RowSettings(max_tokens=0)
    assert [len(ids) for ids in cut(row(700, 600, 3), settings.limits)] == [700, 600, 3]
    assert [len(ids) for ids in cut(row(700, 600, 3), RowSettings().limits)] == [512, 512, 3]
    found = cut(row(700, 600, 3), settings.limits_in(1200))
    assert isinstance(found, InputError) and "--max-prompt-tokens and --max-response-tokens" in str(found)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_tokens": -1}, "--max-tokens: -1 has to be from 1 to 16,777,216"),
        ({"max_prompt_tokens": 0}, "--max-prompt-tokens: 0 has to be from 1"),
        ({"max_tokens": 1}, "--max-tokens: 1 leaves no room for a response beside a prompt of 1; raise it"),
        (
            {"max_tokens": 9, "max_prompt_tokens": 9},
            "--max-tokens: 9 leaves no room for a response beside a prompt of 9; raise",
        ),
        ({"max_tokens": 9, "keep_prompt": "start"}, "--keep-prompt start: --max-tokens alone cuts no prompt; give"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(settings, said):
    with pytest.raises(InputError) as fault:
        RowSettings(**settings)
    assert str(fault.value).startswith(said)


def test_a_named_limit_of_responses_cuts_first():
    settings = RowSettings(max_tokens=20, max_prompt_tokens=10, max_response_tokens=6)
    assert [len(ids) for ids in cut(row(14, 30, 5), settings.limits)] == [14, 6, 5]  # 14 + 6 is no more than 20
    assert [len(ids) for ids in cut(row(15, 30, 5), settings.limits)] == [10, 6, 5]
    settings = RowSettings(max_tokens=20, max_response_tokens=6)
    assert [len(ids) for ids in cut(row(12, 30, 5), settings.limits)] == [12, 6, 5]
    assert [len(ids) for ids in cut(row(16, 30, 5), settings.limits)] == [16, 4, 4]


def test_a_row_beyond_the_models_context_is_a_fault_with_the_flag_that_takes_it():
    settings = RowSettings(max_prompt_tokens=20, max_response_tokens=20)
    assert [len(ids) for ids in cut(row(10, 8, 14), settings.limits_in(24))] == [10, 8, 14]
    fault = cut(row(10, 15, 3), settings.limits_in(24))
    assert str(fault) == (
        "rows.jsonl:1: 25 tokens after the cut, but the model's context (max_position_embeddings) has 24; lower "
        "--max-prompt-tokens and --max-response-tokens, or accept such rows: --beyond-context"
    )
    lower = cut(row(10, 15, 3), RowSettings(max_tokens=30).limits_in(24))
    assert "; lower --max-tokens, or accept" in str(lower)
    assert [len(ids) for ids in cut(row(10, 15, 3), RowSettings(max_tokens=24).limits_in(24))] == [10, 14, 3]
    settings = RowSettings(beyond_context=True)
    assert [len(ids) for ids in cut(row(10, 15, 3), settings.limits_in(24))] == [10, 15, 3]
    assert settings.limits_in(None).context is None


def same_until(n, chosen, rejected):
    """Two responses of these lengths that differ from token n on."""
    shared = tuple(range(1000, 1000 + n))
    return Record(
        "rows.jsonl:4", "pairs", (1, 2, 3), tuple(shared + (k,) * (m - n) for k, m in ((5, chosen), (6, rejected)))
    )


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"max_response_tokens": 6}, "--max-response-tokens"),
        ({"max_tokens": 9}, "--max-tokens"),
        ({"max_tokens": 8, "max_prompt_tokens": 2}, "--max-tokens"),
        ({"max_tokens": 100, "max_response_tokens": 6}, "--max-response-tokens"),
    ],
)
def test_a_pair_that_is_the_same_after_the_cut_is_a_fault(settings, flag):
    fault = cut(same_until(6, 8, 9), RowSettings(**settings).limits)
    assert str(fault) == (
        'rows.jsonl:4: "chosen" and "rejected" are the same 6 token ids after the cut; a pair has to differ: raise '
        f"{flag}"
    )
    assert not isinstance(cut(same_until(5, 8, 9), RowSettings(**settings).limits), InputError)
    assert not isinstance(cut(same_until(6, 6, 7), Limits()), InputError)  # one ends where the other goes on


def test_of_ranked_completions_the_best_and_the_worst_have_to_differ_after_the_cut():
    ranked = Record("rows.jsonl:2", "ranked", (1,), ((5, 6, 7), (5, 8), (5, 6, 9)))
    fault = cut(ranked, Limits(response_tokens=2))
    assert str(fault) == (
        "rows.jsonl:2: the best and the worst completion are the same 2 token ids after the cut; a pair has to differ: "
        "raise --max-response-tokens"
    )
    assert cut(ranked, Limits()) == [[1], [5, 6, 7], [5, 8], [5, 6, 9]]
    between = Record("rows.jsonl:2", "ranked", (1,), ((5, 6, 7), (5, 6, 8), (5, 9)))
    assert cut(between, Limits(response_tokens=2)) == [[1], [5, 6], [5, 6], [5, 9]]


def test_completions_that_are_listed_to_be_scored_may_be_the_same():
    listed = Record("rows.jsonl:2", "listed", (1,), ((5, 6, 7), (5, 6, 8)))
    assert cut(listed, Limits(response_tokens=2)) == [[1], [5, 6], [5, 6]]


def test_texts_that_a_tokenizer_does_not_tell_apart_are_told_without_a_limit():
    (made,) = encode([Record("rows.jsonl:1", "pairs", (1,), ((5, 6), (5, 6)))], None, Limits(), n_ids=10)
    assert str(made) == 'rows.jsonl:1: "chosen" and "rejected" are the same token ids; a pair has to differ'
