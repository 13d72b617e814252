"""Questions to language models over HTTP, each answered and stored exactly once: `answer_all` over a scheduler (how
often, how many at once), the limits that end a run early, endpoints with their keys and paces, the store of answers,
what goes over the wire, and files for OpenAI's Batch API. It knows nothing of pairs."""

from revise.client.batch import read_batch, write_batch
from revise.client.client import (
    NO_KEY,
    Answered,
    HttpTransport,
    answer_all,
    answered,
    endpoints_of,
    is_open,
    said,
)
from revise.client.config import ClientConfig, Estimate, estimate, parse_extra, told
from revise.client.endpoints import Endpoint, Pace, Pool, parse_base
from revise.client.keys import parse_headers
from revise.client.reading import Completion, is_cut, read_answer
from revise.client.roles import JUDGE, PAIR_JUDGE, REVISER, SCORER, SERVED, TARGET, Role
from revise.client.scheduler import Scheduler, Tally
from revise.client.store import Row, State, Store, open_store
from revise.client.wire import (
    CHARACTERS_PER_TOKEN,
    REWARD_PATH,
    Request,
    canonical,
)

__all__ = [
    "CHARACTERS_PER_TOKEN",
    "JUDGE",
    "NO_KEY",
    "PAIR_JUDGE",
    "REVISER",
    "REWARD_PATH",
    "SCORER",
    "SERVED",
    "TARGET",
    "Answered",
    "ClientConfig",
    "Completion",
    "Endpoint",
    "Estimate",
    "HttpTransport",
    "Pace",
    "Pool",
    "Request",
    "Role",
    "Row",
    "Scheduler",
    "State",
    "Store",
    "Tally",
    "answer_all",
    "answered",
    "canonical",
    "endpoints_of",
    "estimate",
    "is_cut",
    "is_open",
    "open_store",
    "parse_base",
    "parse_extra",
    "parse_headers",
    "read_answer",
    "read_batch",
    "said",
    "told",
    "write_batch",
]
