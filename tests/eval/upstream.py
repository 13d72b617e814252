"""Stand-ins for what users have of the benchmarks' own repositories: AlpacaEval's template, a MixEval checkout."""

from eval import mixeval

# AlpacaEval's wording of a comparison
TEMPLATE = """<|im_start|>system
Be fair.
<|im_end|>
<|im_start|>user
Task: {instruction}
m: {output_1}
M: {output_2}
<|im_end|>
"""

# MixEval's files of wording
EVALUATION = """
MULTI_CHOICE_PROMPT = "Say a letter."
FREE_FORM_PROMPT = "Be short."
FREE_FORM_PROMPT_BBH = "Answer. \\nThink."
FREE_FORM_PROMPT_GSM8k = "Answer. \\nCount."
FREE_FORM_PROMPT_MATH = "Answer. \\nProve."
"""
JUDGE = """
gpt_judge_for_closeended_freeform = lambda prompt, gold_ans, response: [
{"role": "system", "content": f"Judge."},
{"role": "user", "content": f'''Mark as \\"[[score]]\\".
Q: {prompt}
G: {gold_ans}
A: {response}
Verdict: 
'''}
]
gpt_judge_for_closeended_multiplechoice = lambda prompt, options, response: [
{"role": "system", "content": f"Extract."},
{"role": "user", "content": f'''Q: {prompt}
{options}
A: {response}
'''}
]
"""


def checkout(folder, evaluation=EVALUATION, judge=JUDGE):
    """A MixEval checkout's files of wording, in a folder."""
    (folder / "mix_eval/prompts").mkdir(parents=True)
    (folder / mixeval.PROMPTS).write_text(evaluation)
    (folder / mixeval.JUDGE).write_text(judge)
    return folder
