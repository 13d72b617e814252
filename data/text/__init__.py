"""Templates and tokenizers: messages as token ids, by what a checkpoint folder says of them."""

from data.text.chat import LLAMA3_TEMPLATE, LLAMA3_TOKENS, Chat, Run, stop_ids
from data.text.messages import ROLES, Message
from data.text.tokenizer import FILES, Tokenizer, has_tokenizer, read_json

__all__ = [
    "FILES",
    "LLAMA3_TEMPLATE",
    "LLAMA3_TOKENS",
    "ROLES",
    "Chat",
    "Message",
    "Run",
    "Tokenizer",
    "has_tokenizer",
    "read_json",
    "stop_ids",
]
