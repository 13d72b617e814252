"""The report: numbers that are those of the lines, and words of strangers that stay words in four formats."""

import csv
import itertools
import json
import math
import re
import statistics

import pytest

from eval import plots, report, report_tables, runs, tables
from eval.runs import beta_of, heldout, heldout_logratios, heldout_rewards
from eval.tables import Table
from system.errors import InputError
from tests.browser import PAYLOADS, look
from tests.eval.run_folders import GAINS, cells, line, run_folder, run_of


def test_checkpoints_inside_epochs_have_their_place_between_them(tmp_path):
    """Epochs of 2 steps, and held-out numbers before the first."""
    names = ("epoch-01", "step-000001", "step-000003", "epoch-02")
    lines = [line("base", 0.4), *(line(name, 0.5) for name in names)]
    folder = run_folder(tmp_path / "a", lines=lines)
    text = (folder / "metrics.jsonl").read_text()
    start = {"step": 0, "epoch": 0.0, "eval_logps/chosen": -9.0, "eval_logps/rejected": -9.5}
    (folder / "metrics.jsonl").write_text(json.dumps(start) + "\n" + text)
    (run,) = runs.read_runs([folder])
    assert run.checkpoints == ["step-000001", "epoch-01", "step-000003", "epoch-02"]
    assert [run.place(name) for name in run.checkpoints] == [0.5, 1.0, 1.5, 2.0]
    assert runs.heldout(run, "logps/chosen") == [(0.0, -9.0), (1.0, -12.0), (2.0, -14.0)]
    page = report.write([folder], tmp_path / "out").read_text()
    assert "Held-out log-likelihood (Figure 4)" in page
    assert cells(tmp_path / "out/tables/table-5.csv")[1][2:4] == ["4", "2.0"]  # the line of step 0 is no step


def test_table_2_is_max_mean_and_deviation_of_the_gains(tmp_path):
    page = report.write([run_folder(tmp_path / "a"), run_folder(tmp_path / "b", loss="sft")], tmp_path / "out")
    header, first, second = cells(tmp_path / "out/tables/table-2.csv")
    gains = [100 * g for g in GAINS]
    assert header == ["data", "objective", *(f"quiz v {x}" for x in ("base", "max Δ", "mean Δ", "± sd"))]
    assert first[:2] == ["pairs", "dpo"] and second[:2] == ["pairs", "sft"]
    expected = [40.0, max(gains), statistics.mean(gains), statistics.stdev(gains)]
    assert [float(x) for x in first[2:]] == pytest.approx(expected, abs=0.005)
    assert "dpo on pairs" in page.read_text()


def test_table_4_has_the_parts_of_the_best_checkpoint_and_table_5_the_time(tmp_path):
    report.write([run_folder(tmp_path / "a")], tmp_path / "out")
    assert cells(tmp_path / "out/tables/table-4-1.csv") == [
        ["part", "base", "dpo on pairs, epoch-02"], ["overall", "40.00", "45.00"], ["parts", "50.00", "70.00"],
    ]  # fmt: skip
    assert cells(tmp_path / "out/tables/table-5.csv")[1] == ["pairs", "dpo", "4", "2.0", "6.0 min", "0.5"]


def test_scores_of_another_judge_give_a_dash_and_a_reason(tmp_path):
    lines = [line("base", 0.4, judge="old"), line("epoch-01", 0.5)]
    report.write([run_folder(tmp_path / "a", lines=lines)], tmp_path / "out")
    markdown = (tmp_path / "out/tables/table-2.md").read_text()
    assert "judge is 'j' in one and 'old' in the other" in markdown and "10.00" not in markdown


@pytest.mark.parametrize(
    "lines",
    [[], [line("base", 0.4)], [line("epoch-01", 0.5)], [line("base", 0.0), line("epoch-01", 0.0, stderr=None)]],
    ids=["none", "base alone", "no base", "all equal"],
)
def test_little_or_nothing_makes_a_page_without_a_nan(tmp_path, lines):
    page = report.write([run_folder(tmp_path / "a", lines=lines)], tmp_path / "out").read_text()
    assert not re.search(r"\b(nan|inf|None)\b", page)


def test_a_folder_without_anything_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"neither eval/scores\.jsonl nor metrics.jsonl"):
        report.write([tmp_path / "empty"], tmp_path / "out")


def test_judges_that_were_asked_otherwise_have_no_difference(tmp_path):
    facts = {"judge": "j", "judge_model": "j"}
    lines = [line("base", 0.4) | facts | {"judge_temperature": None}]
    lines += [line("epoch-01", 0.5) | facts | {"judge_temperature": 0.0}]
    page = report.write([run_folder(tmp_path / "a", lines=lines)], tmp_path / "out").read_text()
    assert "judge_temperature is 0.0 in one and None in the other" in page


def test_tables_of_an_older_report_go(tmp_path):
    tables = tmp_path / "out/tables"
    tables.mkdir(parents=True)
    for name in ("table-4-1.md", "table-4-1.csv", "table-4-1.tex", "mine.md"):
        (tables / name).write_text("old")
    report.write([run_folder(tmp_path / "a", lines=[line("base", 0.4), line("epoch-01", 0.5)])], tmp_path / "out")
    assert not any(path.read_text() == "old" for path in tables.glob("table-*")) and (tables / "mine.md").exists()


def test_answers_that_run_away_are_said(tmp_path):
    lines = [line("base", 100.0, "characters", "samples"), line("epoch-02", 900.0, "characters", "samples")]
    (found,) = runs.read_runs([run_folder(tmp_path / "a", lines=lines)])
    table = report_tables.lengths([found])
    assert "9.0 times as long" in table.notes[0] and table.rows[0][-3:] == ("100", "900", "+800")


def test_runs_of_one_objective_are_told_apart_by_what_differs(tmp_path):
    """By a setting that changes what comes out; by the folder where nothing does, or too much."""
    told = {
        "a": "lr: 1.0e-06\nkeep_checkpoints: 1\nmaster_weights: auto\n",
        "b": "lr: 2e-6\nkeep_checkpoints: 2\nmaster_weights: auto\n",
        "c": "lr: 2e-6\nkeep: 3\nmaster: auto\n",  # as release 0.1 wrote it
    }  # fmt: skip
    folders = [run_folder(tmp_path / name) for name in (*told, "d")]
    for folder, more in zip(folders, told.values(), strict=False):
        with open(folder / "config.yaml", "a") as file:
            file.write(more)
    alone = [runs.read_runs([folder])[0].name for folder in folders]
    assert alone == ["dpo on pairs"] * 4
    assert [run.loss for run in runs.read_runs(folders[:2])] == ["dpo lr=1e-06", "dpo lr=2e-06"]
    assert [run.name for run in runs.read_runs(folders[:3])] == [
        "dpo lr=1e-06 on pairs", f"dpo ({tmp_path / 'b'}) on pairs", f"dpo ({tmp_path / 'c'}) on pairs",
    ]  # fmt: skip
    with open(folders[3] / "config.yaml", "a") as file:
        file.write("lr: 1e-6\nbeta: 0.3\nseed: 1\nbatch_size: 8\ndtype: float32\n")
    assert runs.read_runs([folders[0], folders[3]])[1].name == f"dpo ({tmp_path / 'd'}) on pairs"


def test_a_metrics_file_that_still_grows_is_read_up_to_its_last_whole_line(tmp_path):
    run = run_folder(tmp_path / "a")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "ep')
    assert len(runs.read_runs([run])[0].metrics) == 4


def test_a_callers_own_figures_stand_before_the_runs(tmp_path):
    mine = plots.chart("Mine", [plots.Series("a", [(1.0, 2.0), (2.0, 3.0)])], x="x", y="y")
    page = report.write([run_folder(tmp_path / "a")], tmp_path / "out", charts=[mine]).read_text()
    assert 0 < page.index("<figcaption>Mine</figcaption>") < page.index("class=cards")


def test_many_runs_are_drawn_by_data_set(tmp_path):
    folders = [run_folder(tmp_path / f"{d}{i}", loss=f"l{i}", data=f"{d}.jsonl") for d in "ab" for i in range(4)]
    page = report.write(folders, tmp_path / "many").read_text()
    for data in "ab":
        (figure,) = re.findall(
            rf"Held-out log-likelihood \(Figure 4\): {data}</figcaption>.*?</figure>", page, re.DOTALL
        )
        assert f"l0 on {data}" in figure and f"on {'ba'[data == 'b']}" not in figure
    few = report.write(folders[3:5], tmp_path / "few").read_text()
    (figure,) = re.findall(r"Held-out log-likelihood \(Figure 4\)</figcaption>.*?</figure>", few, re.DOTALL)
    assert "l3 on a" in figure and "l0 on b" in figure


# --- words of strangers --------------------------------------------------------------------------------------------

HOSTILE = [
    "=HYPERLINK(1)",
    "+1",
    "-cmd",
    "@x",
    "\tx",
    "a|b",
    "\\input{/etc/passwd}",
    "50 % & more_$",
    "`code`",
    "\x1b]52;c;x\x07",
    "\u202eabc",
]


@pytest.mark.parametrize("cell", HOSTILE)
def test_a_cell_is_text_in_every_format(cell):
    table = Table("t", cell, ("name", cell), [(cell, "-3.50")], 1, [cell])  # a file's name is ours alone
    (_, row) = list(csv.reader(tables.to_csv(table).splitlines()))
    assert not row[0].startswith(("=", "+", "-", "@", "\t")) and row[1] == "-3.50"
    body = tables.to_latex(table).partition(r"\midrule")[2].partition(r"\bottomrule")[0]
    assert r"\input" not in body and not re.search(
        r"(?<!\\)[%$#_]", body.replace(r"$\pm$", "").replace(r"$\Delta$", "")
    )
    assert len(re.findall(r"(?<!\\)\|", tables.to_markdown(table).splitlines()[4])) == 3
    for form in (tables.to_csv, tables.to_latex, tables.to_markdown, tables.to_html):
        assert not set("\x1b\x07\u202e") & set(form(table))


def test_the_words_of_models_files_and_settings_are_never_markup(tmp_path):
    folders = []
    for i, payload in enumerate(PAYLOADS):
        lines = [line(name, 0.4, benchmark=payload, version=payload) for name in ("base", "epoch-01")]
        lines += [line("base", 0.3, payload, benchmark=payload, version=payload)]
        folders.append(
            run_folder(tmp_path / f"run-{i}", data=payload.replace("/", ""), lines=lines, words=f"{payload} {i}")
        )
    page = report.write(folders, tmp_path / "out", title=" ".join(PAYLOADS))
    text = page.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; style-src 'sha256-") and "script" not in policy
    page.write_text(text.replace("default-src 'none';", "default-src 'none'; script-src 'none';", 1))
    told = look(page)
    assert told["pwned"] == "undefined" and told["n"] == told["links"] == 0
    text = " ".join(told["text"].split())
    for payload in PAYLOADS:
        assert text.count(" ".join("\n".join(map(tables.plain, payload.split("\n"))).split())) >= 2, payload


# --- charts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.7, 812.4), (0.001, 0.0013), (5, 5), (0, 0), (-1e9, 1e9)])
def test_ticks_are_round_and_reach_around_the_values(low, high):
    found = plots.ticks(low, high)
    steps = {round((b - a) / (found[1] - found[0]), 6) for a, b in itertools.pairwise(found)}
    assert steps <= {1.0} and found[0] <= low + 1e-12 and found[-1] >= high - 1e-12 and len(found) <= 8


def test_a_chart_puts_points_where_they_belong():
    made = plots.chart("t", [plots.Series("s", [(0, 0.0), (10, 5.0), (5, math.nan)])], x="x", y="y")
    (path,) = re.findall(r'polyline [^>]*points="([^"]*)"', made)
    left, bottom, right, top = plots.LEFT, plots.HEIGHT - plots.BOTTOM, plots.WIDTH - plots.RIGHT, plots.TOP
    assert path == f"{left:.1f},{bottom:.1f} {right:.1f},{top:.1f}" and "nan" not in made


def test_a_long_line_is_thinned_to_means():
    found = plots.thin([(float(i), float(i % 2)) for i in range(4000)])
    assert len(found) == plots.MOST_POINTS and all(y == 0.5 for _, y in found)


# --- held-out rows -------------------------------------------------------------------------------------------------


def test_log_ratios_are_read_by_their_name_and_of_older_runs_are_rewards_over_beta():
    new = run_of([{"eval_logratios/chosen": 2.0, "eval_rewards/chosen": 35.0}], loss="simpo", beta="2.5")
    assert heldout_logratios(new, "chosen") == [(1.0, 2.0)] and heldout_rewards(new, "chosen") == [(1.0, 5.0)]
    assert heldout(new, "rewards/chosen") == [(1.0, 35.0)]  # the objective's own
    old = run_of([{"eval_rewards/chosen": 0.6}], loss="dpo", beta="0.3")
    assert heldout_logratios(old, "chosen") == [(1.0, pytest.approx(2.0))]
    assert heldout_rewards(old, "chosen") == [(1.0, pytest.approx(0.6))]
    assert heldout_logratios(run_of([{"step": 1}]), "chosen") == []


def test_an_evaluators_older_lines_are_divided_by_the_beta_that_they_name():
    told = {"benchmark": "heldout", "version": "9 pairs", "judge": None, "stderr": None}
    old = [
        told | {"checkpoint": f"epoch-{i:02d}", "metric": "rewards/chosen", "value": 0.4 * i, "beta": 0.2}
        for i in (1, 2)
    ]
    measured = [{"eval_logratios/chosen": 9.0}]
    assert heldout_logratios(run_of(measured, old, beta="0.1"), "chosen") == [
        (1.0, pytest.approx(2)),
        (2.0, pytest.approx(4)),
    ]
    new = [told | {"checkpoint": "epoch-01", "metric": "logratios/chosen", "value": 5.0}]
    assert heldout_logratios(run_of(measured, [*old, *new], beta="0.1"), "chosen") == [(1.0, 5.0)]


def test_a_runs_beta_is_its_own_that_of_its_first_objective_or_the_papers():
    for settings, beta in (
        ({"loss": "dpo", "beta": "0.3"}, 0.3),
        ({"loss": "simpo:1,dpo:2", "simpo.beta": "2.0", "dpo.beta": "0.1"}, 2.0),
        ({"loss": "simper"}, 0.1),
        ({"loss": "dpo", "beta": "null"}, 0.1),
    ):
        assert beta_of(settings) == beta


def test_figure_4_has_log_ratios(tmp_path):
    folder = run_folder(tmp_path / "a", loss="simpo")
    added = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    for i, x in enumerate(added):
        x.update({f"eval_logratios/{side}": float(i) for side in ("chosen", "rejected")})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in added))
    page = report.write([folder], tmp_path / "out").read_text()
    assert "Held-out log-ratio to the reference (Figure 4)" in page and "Held-out reward" not in page
