"""How much of the gap to a stronger model a run closes: the paper's own numbers, and when there is none to be said."""

import csv

import pytest

from eval import gap, report, scores
from tests.eval.run_folders import line, run_folder

VERSIONS = ("2024-06-01", "2024-08-11")


def mixeval(checkpoint, value, version=VERSIONS[0], **more):
    return line(checkpoint, value, "table4_compat/overall", "mixeval-hard") | {"version": version} | more


def alpaca(checkpoint, value, **more):
    named = {"version": "gpt4_1106_preview"}
    return line(checkpoint, value, "length_controlled_winrate", "alpacaeval-2") | named | more


def cells(folder):
    with open(folder / "tables/gap.csv", newline="") as file:
        return list(csv.reader(file))


def test_the_papers_headline_comes_out_of_its_numbers(tmp_path):
    """7.65 points of 17 between Llama-3-8B-Instruct (41.45) and GPT-4-turbo: 45 % (section 5.3 of the paper)."""
    lines = [mixeval("base", 0.4145), mixeval("epoch-07", 0.4910), mixeval("epoch-01", 0.43)]
    lines += [mixeval("gpt-4-turbo", 0.5845)]
    folder = run_folder(tmp_path / "a", lines=lines)
    page = report.write([folder], tmp_path / "out").read_text()
    header, row = cells(tmp_path / "out")
    assert header == ["data", "objective", *(f"mixeval-hard 2024-06-01 {kind}" for kind in
                                             ("base", "gpt-4-turbo", "max Δ", "gap closed, %"))]  # fmt: skip
    assert row == ["pairs", "dpo", "41.45", "58.45", "7.65", "45.0"]
    assert "Gap to gpt-4-turbo closed" in page


def test_the_stronger_model_is_no_checkpoint_of_the_run(tmp_path):
    """Its name ends in a number, as a checkpoint's does, and its score would be the run's best."""
    lines = [mixeval("base", 0.40), mixeval("epoch-01", 0.45), mixeval("gpt-4", 0.60)]
    folder = run_folder(tmp_path / "a", lines=lines)
    report.write([folder], tmp_path / "plain")
    report.write([folder], tmp_path / "told", gap_to="gpt-4")
    gains = {}
    for name in ("plain", "told"):
        with open(tmp_path / name / "tables/table-2.csv", newline="") as file:
            gains[name] = list(csv.reader(file))[1][3]
    assert gains == {"plain": "20.00", "told": "5.00"}
    assert cells(tmp_path / "told")[1][-1] == "25.0" and not (tmp_path / "plain/tables/gap.csv").exists()


def test_one_score_of_the_stronger_model_serves_every_run(tmp_path):
    first = [mixeval("base", 0.4), mixeval("epoch-01", 0.5), mixeval("gpt-4-turbo", 0.6)]
    second = [mixeval("base", 0.4), mixeval("epoch-01", 0.45)]
    folders = [run_folder(tmp_path / "a", lines=first), run_folder(tmp_path / "b", loss="sft", lines=second)]
    report.write(folders, tmp_path / "out")
    assert [row[-1] for row in cells(tmp_path / "out")[1:]] == ["50.0", "25.0"]


def test_alpacaevals_reference_is_at_fifty(tmp_path):
    """10 points of the 30 between 20 and 50."""
    folder = run_folder(tmp_path / "a", lines=[alpaca("base", 20.0), alpaca("epoch-01", 30.0)])
    report.write([folder], tmp_path / "out")
    assert cells(tmp_path / "out")[1][2:] == ["20.00", "50.00", "10.00", "33.3"]
    assert "has 50 by definition" in (tmp_path / "out/tables/gap.md").read_text()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([mixeval("base", 0.4), mixeval("epoch-01", 0.5)], None),
        ([mixeval("epoch-01", 0.5), mixeval("gpt-4-turbo", 0.6)], None),
        ([mixeval("base", 0.4), mixeval("epoch-01", 0.5), mixeval("gpt-4-turbo", 0.6, VERSIONS[1])], None),
        (
            [mixeval("base", 0.4), mixeval("epoch-01", 0.5), mixeval("gpt-4-turbo", 0.6, judge="k"),
             alpaca("base", 20.0), alpaca("epoch-01", 30.0)],
            "the score of gpt-4-turbo on mixeval-hard 2024-06-01 does not compare: judge is 'k' in one and 'j'",
        ),
        (
            [mixeval("base", 0.4), mixeval("epoch-01", 0.5), mixeval("gpt-4-turbo", 0.6, n_unjudged=20, n_asked=100),
             alpaca("base", 20.0), alpaca("epoch-01", 30.0)],
            "20 of 100 queries of gpt-4-turbo and 0 of 100 queries of base were not judged",
        ),
        (
            [mixeval("base", 0.4), mixeval("epoch-01", 0.5), mixeval("gpt-4-turbo", 0.4)],
            "gpt-4-turbo is no better than the base on mixeval-hard",
        ),
    ],
    ids=["no stronger model", "no base", "another version", "another judge", "not whole", "no gap"],
)  # fmt: skip
def test_where_an_end_is_not_known_there_is_no_share(tmp_path, lines, said):
    report.write([run_folder(tmp_path / "a", lines=lines)], tmp_path / "out")
    path = tmp_path / "out/tables/gap.md"
    if said is None:
        assert not path.exists()
    else:
        assert said in path.read_text().replace("\\", "") and "gap closed" in path.read_text()


def test_a_loss_closes_less_than_nothing():
    assert gap.closed(-2.0, 40.0, 50.0) == pytest.approx(-0.2)
    assert gap.closed(2.0, 50.0, 50.0) is None


def test_lines_of_the_stronger_model_can_be_written_by_any_program(tmp_path):
    folder = run_folder(tmp_path / "a", lines=[mixeval("base", 0.4), mixeval("epoch-01", 0.5)])
    scores.write(folder / "eval/scores.jsonl", [mixeval("gpt-4-turbo", 0.8)])
    report.main([str(folder), "--out", str(tmp_path / "out")])
    assert cells(tmp_path / "out")[1][-1] == "25.0"


def test_the_newest_score_of_the_stronger_model_counts_and_each_benchmark_has_its_own(tmp_path):
    lines = [mixeval("base", 0.4), mixeval("epoch-01", 0.5), mixeval("gpt-4-turbo", 0.9), mixeval("gpt-4-turbo", 0.6)]
    lines += [mixeval("base", 0.3, VERSIONS[1]), mixeval("epoch-01", 0.35, VERSIONS[1])]
    lines += [alpaca("base", 20.0), alpaca("epoch-01", 26.0)]
    report.write([run_folder(tmp_path / "a", lines=lines)], tmp_path / "out")
    header, row = cells(tmp_path / "out")
    found = dict(zip(header, row, strict=True))
    assert found["mixeval-hard 2024-06-01 gap closed, %"] == "50.0"
    assert found["alpacaeval-2 gpt4_1106_preview gap closed, %"] == "20.0"
    assert not any(VERSIONS[1] in name for name in header)  # of that one the other end is not known


def test_ends_that_lack_the_same_judgments_say_so_in_their_place(tmp_path):
    lacking = {"n_unjudged": 20, "n_asked": 100, "unjudged_sha256": "a"}
    lines = [mixeval("base", 0.4, **lacking), mixeval("epoch-01", 0.5, **lacking)]
    lines += [mixeval("gpt-4-turbo", 0.6, **lacking)]
    report.write([run_folder(tmp_path / "a", lines=lines)], tmp_path / "out")
    said = " (20 of 100 not judged)"
    assert cells(tmp_path / "out")[1][2:] == [f"40.00{said}", f"60.00{said}", f"10.00{said}", "50.0"]


def test_without_a_gap_there_is_a_dash_and_not_nothing(tmp_path):
    lines = [mixeval("base", 0.4), mixeval("epoch-01", 0.5), mixeval("gpt-4-turbo", 0.4)]
    lines += [alpaca("base", 20.0), alpaca("epoch-01", 20.0)]
    report.write([run_folder(tmp_path / "a", lines=lines)], tmp_path / "out")
    row = cells(tmp_path / "out")[1]
    assert "0.0" in row and row[5] == ""  # nothing, where a page has a dash
