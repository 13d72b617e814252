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


# --- which of two things it is -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "found",
    [
        error("The prompt 'my billing is overdue' was filtered", code="content_filter"),
        error("'insufficient funds' was found in it", 403, metadata={"reasons": ["fraud"]}),
        error("credit balance", 400, innererror={"code": "ResponsibleAIPolicyViolation"}),
        error({"detail": [{"loc": ["body"], "msg": "Field required", "input": "Who pays the billing?"}]}, 422),
        error("Request too large: 'the billing of a credit balance ...'", 413),
    ],
)
def test_a_row_that_speaks_of_money_is_no_empty_account(found):
    """Filters and validators repeat what they were sent."""
    assert not refusals.is_without_money(found)


@pytest.mark.parametrize(
    "found",
    [
        error("Your quota is used up; retry in 20 s or pay: insufficient_quota", 400),
        error("no", 400, type="billing_error"),
        error("账户余额不足", 400),
        error("账号欠费", 403),
        error("no", 402, code="content_filter"),
        error("flagged as insufficient", 429, code="insufficient_quota"),
    ],
)
def test_an_account_that_is_empty_is_so_whatever_else_is_said(found):
    assert refusals.is_without_money(found)


@pytest.mark.parametrize(
    ("found", "is_own"),
    [
        (error("This key was flagged", 401), False),
        (error("safety system is down", 500), False),
        (error("safety system is down", 503, code="content_filter"), False),
    ],
)
def test_no_row_is_at_fault_for_a_key_or_a_server(found, is_own):
    assert refusals.is_own(found) == is_own


def test_a_name_that_is_wanted_already_is_not_learnt():
    said = error("Use 'max_tokens' instead.")
    assert refusals.renamed(said, BODY) is None
    assert refusals.renamed(said, {"max_completion_tokens": 9}) == ("max_completion_tokens", "max_tokens")


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (error("Unsupported parameter: 'top_p'; temperature is fine"), "top_p"),
        (error("'temperature' is not supported, 'top_p' neither"), "temperature"),
        (error("Unknown parameter: 'max_tokens_total'"), None),
        (error("'x-temperature' is not allowed"), None),
        (error("temperature is nice, top_p too"), None),
        (error("no", param="model"), None),
    ],
)
def test_the_parameter_that_is_blamed_is_the_first_that_is_named_as_a_word(found, name):
    assert refusals.blamed(found, BODY) == name


@pytest.mark.parametrize(
    ("found", "role", "base", "mend"),
    [
        (error("Not Found", 404), REVISER, "http://x/v1", "fix the address (--endpoint) or the model's name"),
        (error("Not Found", 404), JUDGE, "http://x/v1beta/openai", "fix the address (--judge-endpoint)"),
        (error("no", 405), REVISER, "http://x", "--endpoint http://x/v1"),
        (error("'temperature' is deprecated for this model"), REVISER, "http://x", "'{\"temperature\": null}'"),
        (error("'max_tokens' must be below 2048"), JUDGE, "http://x", "--judge-extra '{\"max_tokens\": ...}'"),
        (error("System role not supported"), JUDGE, "http://x", "take them out of the rows"),
        (error("Developer instruction is not enabled"), TARGET, "http://x", "take them out of the rows"),
        (error("no", 401), REVISER, "http://x", "fix the key: --key-env"),
        (error("The teapot is empty"), REVISER, "http://x", ""),
    ],
)
def test_what_mends_it_is_no_other_thing(found, role, base, mend):
    said = refusals.mend(found, BODY, role, base)
    assert mend in said and bool(said) == bool(mend)


def test_a_system_message_with_words_is_never_told_to_be_left_out():
    body = BODY | {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}]}
    assert "--no-empty-system" not in refusals.mend(error("System role not supported"), body, REVISER, "http://x")


def test_words_are_the_same_in_any_case():
    assert error("Plan has ENDED").words == error("plan has ended").words


def test_an_answer_with_output_beside_an_empty_error_is_none():
    """As the Responses API has it where it is well."""
    assert refusals.in_answer(b'{"error": {}, "output": []}') is None
    assert refusals.in_answer(b'{"error": {"message": "x"}, "output": [{"type": "message"}]}') is None


def test_a_code_that_is_no_number_is_none():
    assert error("no", 200, code="\u00b2").status == 200
