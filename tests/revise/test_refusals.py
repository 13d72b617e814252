"""What servers mean by their errors, as pure functions."""

import json

import pytest

from revise.client import refusals
from revise.client.refusals import read_error
from revise.client.roles import JUDGE, REVISER, SERVED, TARGET

BODY = {
    "model": "m",
    "messages": [{"role": "system", "content": ""}, {"role": "user", "content": "x"}],
    "temperature": 0.7,
    "top_p": 1.0,
    "max_tokens": 4096,
}


def error(message, status=400, **more):
    return read_error(json.dumps({"error": {"message": message} | more}).encode(), status)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"error": {"message": "no"}}',
        b'{"error": "no"}',
        b'[{"error": {"message": "no"}}]',
        b'{"message": "no"}',
        b'{"detail": "no"}',
        b"no",
    ],
)
def test_an_error_is_read_in_each_of_its_forms(raw):
    assert read_error(raw, 400).said == "no"


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"[1]", b"[" * 10000, b'{"error": {"message": {"a": 1}}}'])
def test_any_error_says_something(raw):
    assert read_error(raw, 400).said


WITHOUT_MONEY = [
    error("anything", 402),
    error("no", code="insufficient_quota"),
    error("no", 429, type="insufficient_quota"),
    error("no", code="credit_balance_exhausted"),
    error("no", 429, code="organization_spend_limit_exceeded"),
    error("no", 429, code="organization_usage_limit_exceeded"),
    error("Budget has been exceeded! Current cost: 1.2, Max budget: 1.0", type="budget_exceeded"),
    error("Your credit balance is too low. Please go to Plans & Billing."),
    error("Access denied, please make sure your account is in good standing.", code="Arrearage"),
    error("You exceeded your current quota, please check your plan and billing details.", 429),
    error("no", 403, code="account_deactivated_for_billing"),
    error("Insufficient credits.", 200, code=402),
]


@pytest.mark.parametrize("found", WITHOUT_MONEY)
def test_an_empty_account_is_known_by_status_code_or_words(found):
    assert refusals.is_without_money(found)


@pytest.mark.parametrize(
    "found",
    [
        error("no", 429, code="rate_limit_exceeded"),
        error("no", 429, code="slow_down"),
        error("no"),
        error("Rate limit reached. Add a payment method: https://platform.openai.com/account/billing.", 429),
        error("You exceeded your current quota, please check your plan and billing. Please retry in 20.5s.", 429),
        error("billing backend is down", 503),
        error("'max_tokens' is too large"),
    ],
)
def test_a_limit_that_passes_is_no_empty_account(found):
    assert not refusals.is_without_money(found)


@pytest.mark.parametrize(
    ("found", "is_own"),
    [
        (error("whatever", 403, metadata={"reasons": ["violence"]}), True),
        (error("whatever", code="content_filter"), True),
        (error("The prompt triggered our content management policy."), True),
        (error("whatever", innererror={"code": "ResponsibleAIPolicyViolation"}), True),
        (error("your input was flagged", 403), True),
        (error("no such parameter"), False),
        (error("Incorrect API key provided", 401), False),
        (error("You are not allowed to request logprobs from this model", 403), False),
    ],
)
def test_one_rows_own_fault_is_known(found, is_own):
    assert refusals.is_own(found) == is_own


def test_a_name_is_learnt_where_the_meaning_stays():
    said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    assert refusals.renamed(error(said), BODY) == ("max_tokens", "max_completion_tokens")
    assert refusals.renamed(error("Use 'max_completion_tokens' instead."), {"model": "m"}) is None
    assert refusals.renamed(error("'temperature' is not supported. Use 'top_p' instead."), BODY) is None


@pytest.mark.parametrize(
    ("found", "role", "mend"),
    [
        (error("Unsupported value: 'temperature' does not support 0.7."), REVISER, "--temperature 1"),
        (
            error("Unsupported value: 'temperature' does not support 0."),
            JUDGE,
            "--judge-extra '{\"temperature\": null}'",
        ),
        (error("Unsupported value: 'temperature' does not support 1."), TARGET, "--target-temperature 1"),
        (error("`temperature` and `top_p` cannot both be specified. Please use only one."), REVISER, '"top_p": null'),
        (error("no", param="top_p"), TARGET, "--target-extra '{\"top_p\": null}'"),
        (
            error({"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}, 422),
            SERVED,
            '"seed"',
        ),
        (error("system: text content blocks must be non-empty"), REVISER, "--no-empty-system"),
        (error("System role not supported"), REVISER, "--no-empty-system"),
        (error("This model only support stream mode, please enable the stream parameter."), REVISER, "--stream"),
        (error("This model is only supported in v1/responses and not in v1/chat/completions.", 404), REVISER, "--api"),
        (error("This model's maximum context length is 4096 tokens."), TARGET, "--target-max-tokens"),
        (
            error("'max_completion_tokens' is not supported. Use 'max_tokens' instead."),
            TARGET,
            "--target-extra '{\"max_tokens\": null}'",
        ),
        (error("invalid subscription key", 401), REVISER, "--header 'api-key: $VARIABLE'"),
        (error("invalid key", 401), JUDGE, "--judge-key-env"),
        (error("You are not allowed to request logprobs from this model", 403), JUDGE, "gives no log-probs"),
        (error("Not Found", 404), REVISER, "--endpoint http://x/v1"),
        (error("Unexpected endpoint or method.", 200), REVISER, "--endpoint http://x/v1"),
    ],
)
def test_the_flag_that_mends_it_is_named(found, role, mend):
    assert mend in refusals.mend(found, BODY | {"seed": 1, "logprobs": True}, role, "http://x")


def test_words_are_the_same_whatever_the_numbers():
    a, b = error("request req_8f2: 5210 tokens are too many"), error("request req_77a: 9999 tokens are too many")
    assert a.words == b.words != error("request req_8f2: too large").words


def test_an_answer_that_speaks_of_errors_is_none():
    answer = {"choices": [{"message": {"content": '{"error": "x"}'}}], "error": None}
    assert refusals.in_answer(json.dumps(answer).encode()) is None
    found = refusals.in_answer(b'{"error": {"code": 402, "message": "no"}}')
    assert found is not None and found.status == 402
