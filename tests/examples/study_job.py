"""A run of a study, as tests/examples/test_studies.py starts it: it does what its file says."""

import json
import sys
from pathlib import Path

path = Path(sys.argv[1])
told = json.loads(path.read_text())
with open(told["log"], "a") as log:
    log.write(told["name"] + "\n")
if told["act"] == "fail":
    sys.exit("it cannot go on")
path.write_text(json.dumps(told | {"found": {"value": told["value"]}}))
