"""What a run leaves and goes on from: its folder and lock, its states, its metrics. A new thing that a run writes goes
here, in a file of its own.
"""

from engine.run.folder import RunFolder, identity
from engine.run.run import Run, check_folder

__all__ = ["Run", "RunFolder", "check_folder", "identity"]
