"""What the reasons mean for which rows are no pairs, and what would change them: for whoever looks at such rows."""

MEANINGS = {
    "unchanged": "The revision is the answer itself, except for blanks: there is nothing to learn from it. A larger "
    "--strength changes more.",
    "too short": "It is shorter, in characters, than --min-length-ratio times the model's own answer.",
    "too long": "It is longer, in characters, than --max-length-ratio times the model's own answer: a pair would teach "
    "length more than anything else. --keep-length asks for revisions as long as the answers.",
    "alludes to the revision": "It says that it is a revision (it names an original answer, a student, what "
    "was changed), and a model would learn to say so. --allow-allusions keeps such rows.",
    "half a block of code": "A block of code is opened and not closed, and in the model's own answer none was.",
    "no marker": "The answer does not name the part that is the revision, so that nobody can say where it begins.",
    "two solutions": "The answer names the part that is the revision more than once.",
    "no reasoning before it": "The reasoning comes after the revision, so that nobody can say where the revision ends.",
    "refused": "The model declined to answer.",
    "refused by the server": "The server declined this request, in the words that follow; it is sent again only "
    "with --ask-again.",
    "empty": "There is no text, or none behind the marker.",
    "no answer behind the thoughts": "The answer ended within its thoughts, or the server takes all of it for "
    "thoughts.",
    "thoughts that cannot be told from the answer": "The signs that separate thoughts from an answer occur in the "
    "question or within a line, so that nobody can say where the answer begins.",
    "control tokens": "The text contains a token of a chat template, which no model should learn to write as text.",
    "NUL or U+FFFD in it": "The text contains signs that replace bytes which were not text.",
    "unknown finish reason": "The server ended the answer for a reason that does not say that it is whole. "
    "--accept-finish-reason accepts it.",
    "null content": "The server's answer has no text.",
    "content that is": "The server's answer is not text.",
    "content with a part": "The server's answer is not text alone.",
    "no choices": "The server's answer holds no message.",
    "a choice without a message": "The server's answer holds no message.",
    "a tool call": "The model called a tool instead of answering.",
    "broken off by the server": "The server itself says that it did not end the answer.",
    "truncated": "The answer ended at its limit and is not whole. --max-tokens raises the limit.",
    "truncated: the thoughts": "The model thought until the limit and did not come to answer. --max-tokens raises it.",
    "own answer truncated": "The model's own answer ended at its limit and is not whole. --target-max-tokens raises "
    "the limit.",
    "one answer to": "This many different questions got the same answer: a cache or a proxy gave it, and not the "
    "model. --ask-again asks again, --go-on accepts it.",
    "failed": "No answer came; the same command asks for it again.",
    "not asked yet": "The run ended before this was asked; the same command continues.",
    "no choice": "The judge's last word names neither [1] nor [2].",
    "both chosen": "The judge names both answers.",
    "the two answers are equal": "The model said the same twice. A higher --target-temperature makes answers differ.",
    "the order decides": "Asked in both orders, the judge took the answer in the same place both times.",
    "no completions": "The row has no list of answers.",
    "no scores": "The answers have no scores to rank them by.",
    "tie": "The best and the worst answer have the same score, or the same text.",
    "bad row": "The row cannot be read as answers with scores.",
}
"""By the words that a reason begins with; of several the longest."""
OWN = "own answer "


def meaning(reason: str) -> str:
    """What a row's reason says, in a sentence or two; empty where it says all there is."""
    for words, of_whom in ((reason, ""), (reason.removeprefix(OWN), "Of the model's own answer: ")):
        if known := [name for name in MEANINGS if words.startswith(name)]:
            return of_whom + MEANINGS[max(known, key=len)]
    return ""
