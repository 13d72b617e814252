"""Programs that align starts in tests: a teacher, a served model, a scorer. Each keeps what it was asked.

python -m tests.examples.align_servers teacher --port 8000 --log asked.txt
python -m tests.examples.align_servers model --port 8000 --log asked.txt --name NAME --checkpoint FOLDER
python -m tests.examples.align_servers score RUN
"""

import argparse
import hashlib
import json
import math
import random
import signal
from pathlib import Path

from eval import checkpoints, scores
from examples.requests import TRIED
from revise.loopback import Reply, serve


def reply_of(who, log, names, checkpoint, base):
    """What the server says to a request, each of which is written into the log."""
    log = Path(log)

    def reply(seen):
        if seen.path.endswith("/models"):
            return Reply.json({"data": [{"id": name} for name in names]})
        digest = hashlib.sha256(json.dumps(seen.body, sort_keys=True).encode()).hexdigest()[:16]
        with open(log, "a") as file:
            file.write(f"{who} {digest} {seen.text == TRIED} {checkpoint} {base}\n")
        if seen.body["model"] not in names:
            return Reply.error(404, "no such model", code="model_not_found")
        if seen.text == TRIED:
            return Reply.chat("Yes.")
        if seen.body["model"] == "annotator":
            return annotation(seen)
        return Reply.chat(said(seen, checkpoint)).after(0.05)

    return reply


def annotation(seen):
    """The log-probs of m and M, by a hash of what is shown."""
    first = 0.2 + int(hashlib.sha256(seen.text.encode()).hexdigest()[:8], 16) % 5 / 10
    top = [{"token": "m", "logprob": math.log(first)}, {"token": "M", "logprob": math.log(0.9 - first)}]
    choice = {"index": 0, "message": {"role": "assistant", "content": "m"}, "finish_reason": "length"}
    choice["logprobs"] = {"content": [{"token": "m", "logprob": math.log(first), "top_logprobs": top}]}
    return Reply.json({"model": "annotator-1", "choices": [choice]})


def said(seen, checkpoint):
    """The words of a model by its name."""
    name, text = seen.body["model"], seen.text
    h = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
    if name == "reviser":
        return (
            f"{{teacher_reasoning}}: It can be better.\n\n{{corrected_student_solution}}: The heron is bird {h % 97}."
        )
    if name == "grader":
        return f"As a judge I say this much.\n\n[{1 + h % 10}]"
    if name == "chooser":
        return f"One of them is better.\n\n[{1 + h % 2}]"
    if name == "judge":  # of MixEval's two kinds
        if seen.body["messages"][0]["content"] == "Extract.":
            return "[[A]]" if text.endswith("\nA: A\n") else f"[[{'AB'[h % 2]}]]"
        return "[[1.0]]" if "\nA: a\nVerdict" in text else f"[[{h % 10 / 10}]]"
    return f"The otter of {Path(checkpoint).name} says {h % 89} and {random.random()}."


def score(run):
    """Lines that any scorer writes: how many files a checkpoint has."""
    lines = [
        {"checkpoint": c.name, "benchmark": "files", "version": "1", "metric": "overall", "stderr": None, "judge": None}
        | {"value": len([*c.folder.iterdir()]) / 100}
        for c in checkpoints.find(Path(run), with_base=True)
    ]
    scores.write(Path(run) / "eval" / scores.NAME, lines)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("who")
    parser.add_argument("run", nargs="?")
    for flag in ("port", "log", "name", "checkpoint", "base"):
        parser.add_argument(f"--{flag}", default="")
    asked = parser.parse_args()
    if asked.who == "score":
        score(asked.run)
        return
    names = [asked.name] if asked.who == "model" else ["reviser", "grader", "chooser", "judge", "annotator"]
    with serve(reply_of(asked.who, asked.log, names, asked.checkpoint, asked.base), port=int(asked.port)):
        signal.pause()


if __name__ == "__main__":
    main()
