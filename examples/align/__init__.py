"""From prompts to an aligned model by one command: answers, pairs, contrast and advice, training, evaluation, report.

    ./launch.sh align recipe.yaml

recipe      what the file says: a section for each command, with that command's own flags
check       all of it looked at before anything is spent, and what it will take
stand       rows in the place of pairs that are still to be made
road        the stages, in order, and again for each round
journal     which of them are done, by a fingerprint of what went into them
evaluation  every checkpoint answered and scored, on all GPUs or through a served model
served      a server that is started for its answers, waited for, and ended
probe       one question to every server, before anything is spent
progress    what is done and how much time is left

A stage is a command of this project in a process of its own; what it says is in OUT/logs.
"""

from examples.align.recipe import Recipe
from examples.align.run import follow, make_pairs, run

__all__ = ["Recipe", "follow", "make_pairs", "run"]
