"""What every command needs of the machine: command lines, errors of one sentence, whole files, locks."""

from system.errors import InputError, RunError, Stopped, list_faults
from system.files import (
    OLD,
    TEMPORARY,
    check_new_file,
    check_regular,
    digests,
    naming,
    numbered,
    open_regular,
    remove_folder,
    remove_leftovers,
    seal,
    sync,
    temporary_of,
    whole_file,
    whole_folder,
    write_json,
    write_text,
)
from system.locks import hold

__all__ = [
    "OLD",
    "TEMPORARY",
    "InputError",
    "RunError",
    "Stopped",
    "check_new_file",
    "check_regular",
    "digests",
    "hold",
    "list_faults",
    "naming",
    "numbered",
    "open_regular",
    "remove_folder",
    "remove_leftovers",
    "seal",
    "sync",
    "temporary_of",
    "whole_file",
    "whole_folder",
    "write_json",
    "write_text",
]
