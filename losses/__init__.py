"""Preference objectives as pure functions: sequence log-probs in, per-example losses and rewards out.

    losses.get("apo_zero")(chosen, rejected, beta=0.1)

Every module of this package is imported here, so a new objective is one decorated function in one file.
"""

import importlib
import pkgutil

from losses.errors import LossError
from losses.registry import Loss, Responses, Result, aliases, get, loss, names
from losses.token_responses import TokenResponses, common

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Loss", "LossError", "Responses", "Result", "TokenResponses", "aliases", "common", "get", "loss", "names"]
