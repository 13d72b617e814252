"""Templates and tokenizers: messages as token ids, by what a checkpoint folder says of them."""

from data.text.chat import LLAMA3_TEMPLATE, LLAMA3_TOKENS, Chat, Run, stop_ids
from data.text.json_files import read_json
from data.text.messages import NO_CONTEXT, ROLES, Message, TemplateContext, answer_text
from data.text.tokenizer import Tokenizer, has_tokenizer
from data.text.tokenizer_folder import tokenizer_files

__all__ = [
    "LLAMA3_TEMPLATE",
    "LLAMA3_TOKENS",
    "NO_CONTEXT",
    "ROLES",
    "Chat",
    "Message",
    "Run",
    "TemplateContext",
    "Tokenizer",
    "answer_text",
    "has_tokenizer",
    "read_json",
    "stop_ids",
    "tokenizer_files",
]
