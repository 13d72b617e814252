"""Rows in, examples out: sources (files, folders, hub ids), rows of JSON, CSV and parquet, records, token ids."""

from data.rows.dataset import (
    RowSettings,
    count_repeated,
    digest,
    find_cut,
    hold_out,
    read_examples,
)
from data.rows.examples import Cut, Example, encode, in_form
from data.rows.hub import find_model, is_hub_id
from data.rows.json_rows import load_rows, parse_row, read_lines
from data.rows.limits import Limits, TooLong
from data.rows.model_folder import (
    base_of,
    config_folder,
    find_folder,
    is_adapter,
    is_copy,
    is_model_folder,
    known_base,
    name_of_base,
    open_folder,
    open_model,
)
from data.rows.records import (
    NotUsed,
    PromptRow,
    Record,
    Tie,
    load_preferences,
    parse_prompt,
    parse_record,
    prompts_of,
    read_prompts,
    read_records,
)
from data.rows.settings import ReadingSettings
from data.rows.sources import FIELDS, Reading, files_of, rows_of

__all__ = [
    "FIELDS",
    "Cut",
    "Example",
    "Limits",
    "NotUsed",
    "PromptRow",
    "Reading",
    "ReadingSettings",
    "Record",
    "RowSettings",
    "Tie",
    "TooLong",
    "base_of",
    "config_folder",
    "count_repeated",
    "digest",
    "encode",
    "files_of",
    "find_cut",
    "find_folder",
    "find_model",
    "hold_out",
    "in_form",
    "is_adapter",
    "is_copy",
    "is_hub_id",
    "is_model_folder",
    "known_base",
    "load_preferences",
    "load_rows",
    "name_of_base",
    "open_folder",
    "open_model",
    "parse_prompt",
    "parse_record",
    "parse_row",
    "prompts_of",
    "read_examples",
    "read_lines",
    "read_prompts",
    "read_records",
    "rows_of",
]
