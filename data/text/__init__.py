"""Templates and tokenizers: messages as token ids, by what a checkpoint folder says of them."""

from data.text.chat import LLAMA3_TEMPLATE, LLAMA3_TOKENS, Chat, Response, Run, Said, Written, stop_ids
from data.text.json_files import read_json
from data.text.messages import NO_CONTEXT, ROLES, Message, TemplateContext, answer_text
from data.text.spelled import REMEDY, spelled_control
from data.text.template_settings import NO_SETTINGS, TemplateSettings
from data.text.tokenizer import Tokenizer, has_tokenizer
from data.text.tokenizer_folder import tokenizer_files

__all__ = [
    "LLAMA3_TEMPLATE",
    "LLAMA3_TOKENS",
    "NO_CONTEXT",
    "NO_SETTINGS",
    "REMEDY",
    "ROLES",
    "Chat",
    "Message",
    "Response",
    "Run",
    "Said",
    "TemplateContext",
    "TemplateSettings",
    "Tokenizer",
    "Written",
    "answer_text",
    "has_tokenizer",
    "read_json",
    "spelled_control",
    "stop_ids",
    "tokenizer_files",
]
