"""Where rows come from: files of four kinds, folders, splits, and what is wrong with each, by file and line."""

import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.rows.sources import Reading, files_of, parse_columns, rows_of
from system import InputError
from tests import tiny

parquet = pytest.importorskip("pyarrow.parquet")
import pyarrow  # noqa: E402
import pyarrow.ipc  # noqa: E402

ROWS = [
    {"prompt": "q\n1", "chosen": "a, b", "rejected": '"c"'},
    {"prompt": "世界", "chosen": "é\u2028x", "rejected": "\U0001f642"},
    {"prompt": "q3", "chosen": "a3", "rejected": "b3"},
]


def read(source, **reading):
    """(rows, faults) of a source."""
    found = list(rows_of(source, Reading(**reading)))
    good = [(location, row) for location, row in found if isinstance(row, dict)]
    return good, [str(row) for _, row in found if isinstance(row, InputError)]


def write_csv(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path, rows, **options):
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return path


def write_json(path, rows):
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


WRITERS = {".jsonl": tiny.write_rows, ".json": write_json, ".csv": write_csv, ".parquet": write_parquet}


# --- what is read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITERS)
def test_rows_are_the_same_from_every_kind_of_file(tmp_path, kind):
    rows, faults = read(WRITERS[kind](tmp_path / f"rows{kind}", ROWS))
    assert [row for _, row in rows] == ROWS and not faults


def test_places_are_the_lines_where_rows_begin(tmp_path):
    rows = [(Path(location).name, row["prompt"]) for location, row in read(write_csv(tmp_path / "rows.csv", ROWS))[0]]
    assert rows == [("rows.csv:2", "q\n1"), ("rows.csv:4", "世界"), ("rows.csv:5", "q3")]  # the first has two lines
    listed = read(write_json(tmp_path / "rows.json", ROWS))[0]
    lines = (tmp_path / "rows.json").read_text("utf-8").split("\n")
    numbers = [int(location.rpartition(":")[2]) for location, _ in listed]
    assert [lines[n - 1].strip() for n in numbers] == ["{"] * 3 and numbers == [2, 7, 12]
    counted = read(write_parquet(tmp_path / "rows.parquet", ROWS))[0]
    assert [Path(location).name for location, _ in counted] == ["rows.parquet:1", "rows.parquet:2", "rows.parquet:3"]


def test_json_lines_under_the_name_of_json_are_read(tmp_path):
    rows, faults = read(tiny.write_rows(tmp_path / "rows.json", ROWS))
    assert [row for _, row in rows] == ROWS and not faults


def test_a_table_of_text_has_labels_scores_and_empty_values(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion,label,own_score\nq,a,TRUE,1.5\nq,a,0,\nq,a,maybe,2\nq,a,1,high\n")
    rows, faults = read(path)
    assert [row["label"] for _, row in rows] == ["TRUE", "0", "maybe"]  # which records read
    assert rows[0][1]["own_score"] == 1.5 and "own_score" not in rows[1][1]
    assert faults == [f"{path}:5: \"own_score\" is 'high'; it has to be a number"]


def test_nested_columns_of_parquet_are_messages(tmp_path):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows, _ = read(write_parquet(tmp_path / "rows.parquet", [{"messages": messages, "score": None}]))
    assert rows[0][1] == {"messages": messages, "score": None}


def test_columns_get_our_names(tmp_path):
    file = tiny.write_rows(tmp_path / "rows.jsonl", [{"question": "q", "chosen": "old", "winner": "a", "loser": "b"}])
    columns = parse_columns("prompt=question, chosen=winner,rejected=loser")
    assert read(file, columns=columns)[0][0][1] == {"prompt": "q", "chosen": "a", "rejected": "b"}


def test_a_column_that_is_not_there_is_a_fault_of_the_row(tmp_path):
    file = tiny.write_rows(tmp_path / "rows.jsonl", [{"winner": "a", "chosen": "x"}, {"chosen": "x"}])
    good, faults = read(file, columns=parse_columns("chosen=winner"))
    assert [row for _, row in good] == [{"chosen": "a"}]
    assert faults == [
        f'{file}:2: "winner", which --columns takes as "chosen", is missing; correct --columns or the row'
    ]


def test_columns_of_tables_are_read_as_what_they_are_to_be(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion,good,r,toxicity_score\nq,a,true,2.5,high\n")
    (row,), faults = read(path, columns=parse_columns("label=good,own_score=r"))
    assert row[1]["label"] == "true" and row[1]["own_score"] == 2.5 and not faults


def test_a_name_of_ours_that_is_none_is_answered_with_the_nearest_before_a_file_is_looked_for():
    with pytest.raises(InputError, match="'choosen' is not a known column; perhaps 'chosen'"):
        read("nowhere.jsonl", columns=parse_columns("choosen=winner"))
    with pytest.raises(InputError, match="'marginn' is not a known column; perhaps 'margin'"):
        read("nowhere.jsonl", columns=parse_columns("marginn=x"), fields=("margin",))


@pytest.mark.parametrize("name", ["prompt", "label", "scores"])
def test_what_is_no_number_of_a_row_is_not_asked_for_as_one(name):
    with pytest.raises(InputError, match=f"^'{name}' does not hold numbers; name another column in --fields"):
        read("nowhere.jsonl", fields=(name,))


def test_fields_of_tables_that_are_asked_for_are_read_as_numbers(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion,gap,trust,other\nq,a,-1.5,high,7\n")
    (row,), faults = read(path, columns=parse_columns("margin=gap"), fields=("margin", "trust"))
    assert row[1] == {"prompt": "q", "completion": "a", "margin": -1.5, "trust": "high", "other": "7"} and not faults


@pytest.mark.parametrize("text", ["chosen", "chosen=", "=x", "chosen=b,chosen=c", ","])
def test_columns_that_cannot_be_are_refused(text):
    with pytest.raises(InputError, match=r"--columns: .* is not of the form chosen=winner"):
        parse_columns(text)


OBJECT = json.dumps(ROWS, indent=1, ensure_ascii=False)
WRAPPED = {
    "several lines": f'{{"version": "1",\n"data": {OBJECT},\n"more": [{{"prompt": "no row"}}]}}\n',
    "one line": json.dumps({"info": {"data": [1]}, "data": ROWS}, ensure_ascii=False),
    "one line and a mark": "\ufeff" + json.dumps({"data": ROWS}, ensure_ascii=False) + "\n\n",
}


@pytest.mark.parametrize("text", WRAPPED.values(), ids=WRAPPED)
def test_an_object_that_holds_the_rows_is_these(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8")
    rows, faults = read(path)
    assert [row for _, row in rows] == ROWS and not faults


def test_rows_of_an_object_are_told_by_line(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('{"version": 1,\n "data": [\n{"prompt": "q"},\n{"a": 1, "a": 2},\n{"prompt": "z"}]}')
    good, (fault,) = read(path)
    assert [location for location, _ in good] == [f"{path}:3", f"{path}:5"]
    assert fault.startswith(f"{path}:4: the key 'a' occurs twice")


def test_a_row_with_data_of_its_own_is_a_row(tmp_path):
    rows = [{"prompt": "q", "data": [{"x": 1}]}, {"prompt": "z"}]
    assert [row for _, row in read(tiny.write_rows(tmp_path / "rows.json", rows))[0]] == rows
    one = {"prompt": "q", "data": [1]}
    assert [row for _, row in read(tiny.write_rows(tmp_path / "one.json", [one]))[0]] == [one]


def test_rows_of_several_lines_each_are_read_one_after_the_other(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("\n".join(json.dumps(row, indent=1, ensure_ascii=False) for row in ROWS), encoding="utf-8")
    rows, faults = read(path)
    assert [row for _, row in rows] == ROWS and not faults
    assert [location.rpartition(":")[2] for location, _ in rows] == ["1", "6", "11"]


def test_a_broken_first_line_costs_no_other_row(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('{"prompt": q}\n{"prompt": "z"}\n')
    good, (fault,) = read(path)
    assert [row for _, row in good] == [{"prompt": "z"}] and fault.startswith(f"{path}:1: not JSON")


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".ndjson", ".csv", ".tsv"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_other_names_and_zipped_files_are_read(tmp_path, kind, ending):
    plain = tmp_path / f"plain{kind}"
    if kind == ".tsv":
        with open(plain, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ROWS[0], delimiter="\t")
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        (tiny.write_rows if kind == ".ndjson" else WRITERS[kind])(plain, ROWS)
    path = tmp_path / f"rows{kind}{ending}"
    path.write_bytes(gzip.compress(plain.read_bytes()) if ending else plain.read_bytes())
    rows, faults = read(path)
    assert [row for _, row in rows] == ROWS and not faults


def test_zipped_splits_of_a_folder_have_their_names(tmp_path):
    for name in ("preference/train.jsonl.gz", "preference/validation.jsonl.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(gzip.compress(json.dumps({"prompt": name}).encode()))
    assert names_in(tmp_path) == ["preference/train.jsonl.gz"]
    assert names_in(f"{tmp_path}:preference/validation") == ["preference/validation.jsonl.gz"]


@pytest.mark.parametrize("change", [lambda b: b[:-12], lambda b: b"not zipped", lambda b: b[:20] + b"xxxx" + b[24:]])
def test_a_damaged_zipped_file_is_refused(tmp_path, change):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(change(gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS * 40))))
    with pytest.raises(InputError, match=r"rows\.jsonl\.gz: not gzip, or damaged \(.*\); copy it again"):
        read(path)


def test_the_index_that_pandas_writes_is_a_column_of_its_own(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(",prompt,chosen\n0,q,a\n1,z,b\n")
    rows, faults = read(path)
    assert [row for _, row in rows] == [
        {"Unnamed: 0": "0", "prompt": "q", "chosen": "a"},
        {"Unnamed: 0": "1", "prompt": "z", "chosen": "b"},
    ]
    assert not faults


def test_columns_that_are_let_go_are_gone(tmp_path):
    file = tiny.write_rows(tmp_path / "rows.jsonl", [{"question": "q", "context": "c", "id": 1}])
    assert read(file, ignored=("context", "id"), columns=(("prompt", "question"),))[0][0][1] == {"prompt": "q"}


def test_nested_objects_of_tables_have_the_keys_that_were_written(tmp_path):
    rows = [{"tools": [{"name": "f", "a": {"x": 1}}, {"name": "g", "b": {"y": [None, 2]}}], "score": None}]
    assert read(write_parquet(tmp_path / "rows.parquet", rows))[0][0][1] == rows[0]


# --- what datasets.save_to_disk writes -----------------------------------------------------------------------------


def save_to_disk(folder, rows, n_files=1, writer=pyarrow.ipc.new_stream):
    """A folder as datasets writes one: arrow's streams, and which files they are."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{n_files:05d}.arrow" for i in range(n_files)]
    for i, name in enumerate(names):
        table = pyarrow.Table.from_pylist(rows[i::n_files])
        with writer(str(folder / name), table.schema) as opened:
            opened.write_table(table, max_chunksize=40)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    (folder / "cache-0123456789abcdef.arrow").write_bytes(b"what was done to the rows")
    return folder


@pytest.mark.parametrize("writer", [pyarrow.ipc.new_stream, pyarrow.ipc.new_file])
def test_a_folder_of_save_to_disk_is_its_rows(tmp_path, writer):
    messages = [{"role": "user", "content": "q"}]
    rows = [{"prompt": str(i), "messages": messages} for i in range(100)]
    folder = save_to_disk(tmp_path / "set", rows, writer=writer)
    found, faults = read(folder)
    assert [row for _, row in found] == rows and not faults
    assert found[99][0] == f"{folder}/data-00000-of-00001.arrow:100"
    assert [row for _, row in read(folder / "data-00000-of-00001.arrow")[0]] == rows


def test_a_folder_of_save_to_disk_with_splits_has_them_by_their_names(tmp_path):
    for split in ("train", "held-out"):
        save_to_disk(tmp_path / split, [{"prompt": split}, {"prompt": split}], n_files=2)
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "held-out"]}))
    assert names_in(tmp_path) == ["train", "train"]
    assert names_in(f"{tmp_path}:held-out") == ["held-out", "held-out"]
    with pytest.raises(InputError, match="has the splits held-out, train; name one"):
        files_of(f"{tmp_path}:test")


@pytest.mark.parametrize("text", ["{", "{}", '{"_data_files": [1]}', '{"_data_files": [{"filename": 1}]}'])
def test_a_damaged_folder_of_save_to_disk_is_told_with_its_remedy(tmp_path, text):
    folder = save_to_disk(tmp_path / "set", [{"prompt": "q"}])
    (folder / "state.json").write_text(text)
    with pytest.raises(
        InputError, match=r"state\.json: not as datasets\.save_to_disk writes it, or damaged; .*to_parquet"
    ):
        read(folder)


def test_a_damaged_arrow_file_is_refused(tmp_path):
    folder = save_to_disk(tmp_path / "set", [{"prompt": "q" * 50}] * 100)
    path = folder / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(InputError, match=r"\.arrow(:\d+)?: not arrow, or damaged \(.*\); copy it again"):
        read(folder)


# --- folders -------------------------------------------------------------------------------------------------------


def folder_of(tmp_path, *names):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        WRITERS[Path(name).suffix](tmp_path / name, [{"prompt": name}])
    return tmp_path


def names_in(source):
    return [row["prompt"] for _, row in read(source)[0]]


def test_a_folder_is_its_files_in_order(tmp_path):
    folder = folder_of(tmp_path, "train-00001-of-00002.parquet", "train-00000-of-00002.parquet")
    assert names_in(folder) == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]


def test_a_folder_with_splits_gives_train_or_the_one_that_is_named(tmp_path):
    folder = folder_of(tmp_path, "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "dev/x.jsonl")
    assert names_in(folder) == ["data/train-00000-of-00001.parquet"]
    assert names_in(f"{folder}:test") == ["data/test-00000-of-00001.parquet"]
    assert names_in(f"{folder}:dev") == ["dev/x.jsonl"]
    with pytest.raises(InputError, match=r": has the splits dev, test, train; name one, such as .*:train$"):
        files_of(f"{folder}:validation")


def test_configurations_keep_their_splits_apart(tmp_path):
    names = [f"{c}/{s}-00000-of-00001.json" for c in ("en", "de") for s in ("train", "test")]
    folder = folder_of(tmp_path, *names)
    assert names_in(f"{folder}:en/train") == ["en/train-00000-of-00001.json"]
    assert names_in(f"{folder}:de/test") == ["de/test-00000-of-00001.json"]
    with pytest.raises(InputError, match="has the splits de/test, de/train, en/test, en/train; name one"):
        files_of(folder)
    with pytest.raises(InputError, match="name one"):
        files_of(f"{folder}:train")  # of which configuration?


@pytest.mark.parametrize(
    "names",
    [
        ["part-0.json", "part-1.json"],
        ["train-1.jsonl", "train-2.jsonl"],
        ["train-00000-of-00002-abc123.parquet", "train-00001-of-00002-def456.parquet"],
        ["train.json", "train2.json"],
        ["pairs.jsonl", "more/others.csv"],
    ],
)
def test_shards_are_read_together(tmp_path, names):
    assert sorted(names_in(folder_of(tmp_path, *names))) == sorted(names)


def test_a_folder_of_several_splits_without_train_has_to_be_told_which(tmp_path):
    with pytest.raises(InputError, match="has the splits test_prefs, train_prefs; name one"):
        files_of(folder_of(tmp_path, "train_prefs-00000-of-00001.parquet", "test_prefs-00000-of-00001.parquet"))


def test_split_words_are_the_hubs(tmp_path):
    folder = folder_of(tmp_path, "training.jsonl", "testing.jsonl", "evaluation.jsonl")
    assert names_in(folder) == names_in(f"{folder}:train") == ["training.jsonl"]
    assert names_in(f"{folder}:testing") == ["testing.jsonl"]


@pytest.mark.parametrize("pattern", ["prefs_{}.jsonl", "my-data.{}.jsonl", "my {} data.jsonl", "a-{}/rows.json"])
def test_a_split_word_may_stand_anywhere_in_a_name(tmp_path, pattern):
    folder = folder_of(tmp_path, pattern.format("train"), pattern.format("test"))
    with pytest.raises(InputError, match=r"has the splits .*test.*, .*train.*; name one"):
        files_of(folder)
    assert names_in(f"{folder}:train") == [pattern.format("train")]


def test_a_word_that_only_holds_a_split_word_is_none(tmp_path):
    names = ["trainers.jsonl", "latest.jsonl", "devices.jsonl"]
    assert sorted(names_in(folder_of(tmp_path, *names))) == sorted(names)


def test_held_out_files_are_no_part_of_the_others(tmp_path):
    for name in ("holdout", "held-out", "held_out", "heldout"):
        folder = folder_of(tmp_path / name, "a.jsonl", f"{name}/b.jsonl")
        with pytest.raises(InputError, match=rf"has the splits \(other files\), {name}; name one"):
            files_of(folder)


def test_a_number_that_is_part_of_a_split_s_name_stays_in_it(tmp_path):
    names = [f"train_iteration_{i}.jsonl" for i in (1, 2)] + ["test_iteration_1.jsonl"]
    folder = folder_of(tmp_path, *names)
    with pytest.raises(InputError, match="has the splits test_iteration_1, train_iteration_1, train_iteration_2; name"):
        files_of(folder)
    assert names_in(f"{folder}:train_iteration_2") == ["train_iteration_2.jsonl"]
    assert names_in(f"{folder}:train_iteration") == names[:2]
    assert names_in(folder_of(tmp_path / "x", "train_prefs-1.csv", "train_prefs-2.csv")) == [
        "train_prefs-1.csv",
        "train_prefs-2.csv",
    ]


CARDS = {
    "lists of paths": """
configs:
- config_name: default
  data_files:
  - split: train
    path: ["data/abc.csv", "data/def.csv"]
  - split: test
    path: "kept/ghi.csv"
""",
    "patterns": """
language: en
configs:
- config_name: default
  data_files:
  - {split: train, path: "data/*"}
  - {split: test, path: "**/g?i.*"}
""",
    "folders": """
configs:
- config_name: default
  data_files:
  - {split: train, path: data/}
  - {split: test, path: ./kept}
""",
}


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_the_card_says_which_files_are_which_split(tmp_path, card):
    folder = folder_of(tmp_path, "data/abc.csv", "data/def.csv", "kept/ghi.csv")
    (folder / "README.md").write_text(f"---{card}---\nMade up.\n", encoding="utf-8")
    assert names_in(folder) == ["data/abc.csv", "data/def.csv"]
    assert names_in(f"{folder}:test") == ["kept/ghi.csv"]


def test_configurations_of_the_card_keep_their_splits_apart(tmp_path):
    folder = folder_of(tmp_path, "a/rows.csv", "b/rows.csv", "more.csv")
    card = "configs: [{config_name: one, data_dir: a}, {config_name: two, data_files: b/*.csv}]"
    (folder / "README.md").write_text(f"---\n{card}\n---\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"has the splits \(other files\), one/train, two/train; name one"):
        files_of(folder)
    assert names_in(f"{folder}:two/train") == ["b/rows.csv"]


@pytest.mark.parametrize("card", ["configs: [", "configs: {a: 1}", "configs: [{data_files: [{split: train}]}]"])
def test_a_card_that_cannot_be_read_is_told(tmp_path, card):
    folder = folder_of(tmp_path, "a.csv")
    (folder / "README.md").write_text(f"---\n{card}\n---\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"README\.md: .*; fix it, or name the files$"):
        files_of(folder)


def test_a_card_of_files_that_are_not_there_decides_nothing(tmp_path):
    folder = folder_of(tmp_path, "train.csv", "test.csv")
    (folder / "README.md").write_text("---\nconfigs: [{data_files: all.parquet}]\n---\n", encoding="utf-8")
    assert names_in(folder) == ["train.csv"]


def test_files_about_the_data_are_no_data(tmp_path):
    folder = folder_of(tmp_path, "train.jsonl", ".cache/x.jsonl")
    (folder / "dataset_infos.json").write_text("{}")
    (folder / "README.md").write_text("about")
    assert names_in(folder) == ["train.jsonl"]


@pytest.mark.timeout(20)
def test_a_folder_with_something_that_is_no_file_is_refused(tmp_path):
    folder = folder_of(tmp_path, "a.jsonl")
    os.mkfifo(folder / "b.jsonl")
    with pytest.raises(InputError, match=r"b\.jsonl: not a regular file"):
        files_of(folder)
    (folder / "b.jsonl").unlink()
    (folder / "b.jsonl").symlink_to(folder / "nothing")
    with pytest.raises(InputError, match=r"b\.jsonl: cannot be read .*a link to nothing"):
        files_of(folder)


@pytest.mark.timeout(20)
def test_a_folder_that_is_inside_itself_ends(tmp_path):
    folder = folder_of(tmp_path, "train.jsonl")
    (folder / "again").symlink_to(folder)
    assert names_in(folder) == ["train.jsonl"]


@pytest.mark.parametrize("name", ["absent.jsonl", "no/such/folder/x", "./a/b", "~/x", "nothing"])
def test_a_name_of_nothing_is_told(name):
    with pytest.raises(InputError, match=f"^{name}: no such file or folder; give a file, a folder or a hub id such as"):
        files_of(name)


# --- what is wrong with a file -------------------------------------------------------------------------------------


BROKEN_LISTS = {
    "cut in an object": ('[{"prompt": "q"}, {"prompt"', 1, "not JSON"),
    "cut after an object": ('[{"prompt": "q"}', 1, "the list does not end"),
    "a comma too many": ('[{"prompt": "q"},\n]', 2, "a comma too many, or a missing one"),
    "no comma": ('[{"prompt": "q"}\n{"prompt": "q"}]', 2, "a comma too many, or a missing one"),
    "two commas": ('[{"prompt": "q"},\n,{"prompt": "q"}]', 2, "not JSON"),
    "text behind": ('[{"prompt": "q"}]\nx', 1, "text after the end of the list"),
    "a comma first": ('[,{"prompt": "q"}]', 1, "a comma too many, or a missing one"),
    "NaN": ('[{"prompt": "q"},\n{"prompt": NaN}]', 2, "NaN is not JSON"),
    "a text": ('[{"prompt": "q"},\n"q"]', 2, "a str, not an object"),
    "a key twice": ('[{"prompt": "q"},\n{"a": 1, "a": 2}]', 2, "the key 'a' occurs twice"),
    "half of a pair": ('[{"prompt": "q"},\n{"prompt": "\\ud800"}]', 2, "half of a surrogate pair"),
}


@pytest.mark.parametrize(("text", "line", "said"), BROKEN_LISTS.values(), ids=BROKEN_LISTS)
def test_a_broken_list_is_told_by_line(tmp_path, text, line, said):
    path = tmp_path / "rows.json"
    path.write_text(text)
    try:
        _, (fault,) = read(path)
    except InputError as broken:  # the list itself: what comes behind is out of reach
        fault = str(broken)
    assert fault.startswith(f"{path}:{line}: ") and said in fault


def test_a_bad_row_of_a_list_costs_no_other_row(tmp_path):
    path = tmp_path / "rows.json"
    row = json.dumps(ROWS[0])
    path.write_text(f'[{row},\n{{"x": NaN}},\n{{"a": 1, "a": 2}},\n{row}]')
    good, faults = read(path)
    assert [location for location, _ in good] == [f"{path}:1", f"{path}:4"]
    assert [fault.split(":")[1] for fault in faults] == ["2", "3"]


BROKEN_TABLES = {
    "a value too few": ("a,b\n1,2\n3\n", ":3: 1 values, the header has 2"),
    "a value too many": ("a,b\n1,2,3\n", ":2: 3 values, the header has 2"),
    "an open quote": ('a,b\n1,2\n"3,4\n', ":3: not CSV in UTF-8"),
    "a quote inside": ('a,b\n1,"2"x\n', ":2: not CSV in UTF-8"),
    "a column twice": ("a,a\n1,2\n", ":1: a column has no name, or the name of another"),
    "a column without name": ("a,\n1,2\n", ":1: a column has no name"),
    "Latin-1": (b"a,b\n1,2\nGr\xfc\xdfe,2\n", ":3: not CSV in UTF-8"),
}


@pytest.mark.parametrize(("text", "said"), BROKEN_TABLES.values(), ids=BROKEN_TABLES)
def test_a_broken_table_is_told_by_line(tmp_path, text, said):
    path = tmp_path / "rows.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        _, faults = read(path)
    except InputError as fault:
        faults = [str(fault)]
    assert len(faults) == 1 and faults[0].startswith(f"{path}{said}")


def test_utf_16_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(ROWS[0]).encode("utf-16"))
    with pytest.raises(InputError, match=r"rows\.jsonl: UTF-16; save it as UTF-8"):
        read(path)


@pytest.mark.parametrize(
    "change", [lambda b: b[:-40], lambda b: b"", lambda b: b[: len(b) // 2] + b[len(b) // 2 + 9 :]]
)
def test_a_damaged_parquet_file_is_refused(tmp_path, change):
    path = write_parquet(tmp_path / "rows.parquet", ROWS * 50)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=r"rows\.parquet(:\d+)?: not parquet, or damaged \(.*\); copy it again"):
        read(path)


def test_flipped_bits_of_a_parquet_file_never_crash(tmp_path):
    whole = write_parquet(tmp_path / "rows.parquet", ROWS * 20).read_bytes()
    refused = 0
    for i in range(0, len(whole), max(1, len(whole) // 150)):
        (tmp_path / "x.parquet").write_bytes(whole[:i] + bytes([whole[i] ^ 0x10]) + whole[i + 1 :])
        try:
            read(tmp_path / "x.parquet")
        except InputError as fault:
            refused += "\n" not in str(fault)
    assert refused > 20


MEMORY = """
import resource, sys
from data.rows.sources import Reading, rows_of
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
n = sum(1 for _ in rows_of(sys.argv[1], Reading(max_row_mb=64)))
print(n, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def rows_and_megabytes(path):
    """How many rows a process reads of a file, and what its peak memory grows by."""
    done = subprocess.run([sys.executable, "-c", MEMORY, path], capture_output=True, text=True, check=True)
    return tuple(map(int, done.stdout.split()))


def test_a_kilobyte_that_unpacks_to_gigabytes_takes_no_memory(tmp_path):
    text = pyarrow.array(["x" * 2**20]).dictionary_encode()
    many = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 4000, pyarrow.int32()), text.dictionary)
    parquet.write_table(pyarrow.table({"prompt": many}), tmp_path / "x.parquet")
    assert (tmp_path / "x.parquet").stat().st_size < 2**20  # it stands for 4 GB
    n, megabytes = rows_and_megabytes(tmp_path / "x.parquet")
    assert n == 4000 and megabytes < 500


@pytest.mark.slow
def test_one_huge_value_repeated_is_unpacked_a_row_at_a_time(tmp_path):
    value = pyarrow.array(["x" * (60 * 2**20)])
    rows = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 40, pyarrow.int32()), value)
    parquet.write_table(pyarrow.table({"prompt": rows}), tmp_path / "x.parquet")  # stands for 2.4 GB
    n, megabytes = rows_and_megabytes(tmp_path / "x.parquet")
    assert n == 40 and megabytes < 900


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path):
    row = json.dumps({"prompt": "q" * 2000, "chosen": "a" * 3000, "rejected": "b" * 3000}) + "\n"
    (tmp_path / "rows.jsonl").write_text(row * 25_000)  # 200 MB
    assert rows_and_megabytes(tmp_path / "rows.jsonl")[1] < 60


@pytest.mark.slow
def test_a_row_of_200_mb_is_a_fault_in_little_memory(tmp_path):
    with open(tmp_path / "rows.jsonl", "wb") as file:
        file.write(b'{"prompt": "')
        for _ in range(200):
            file.write(b"x" * 2**20)
        file.write(b'"}\n{"prompt": "q"}\n')
    n, megabytes = rows_and_megabytes(tmp_path / "rows.jsonl")
    assert n == 2 and megabytes < 300


@pytest.mark.slow
def test_a_row_of_a_million_keys_is_read(tmp_path):
    row = {f"k{i}": i for i in range(10**6)} | ROWS[0]
    rows, faults = read(tiny.write_rows(tmp_path / "rows.jsonl", [row]), max_row_mb=64)
    assert len(rows[0][1]) == 10**6 + 3 and not faults


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet"])
def test_rows_above_the_limit_are_faults_that_name_the_flag(tmp_path, kind):
    rows = [ROWS[0], {"prompt": "x" * 2**21, "chosen": "a", "rejected": "b"}, ROWS[2]]
    good, faults = read(WRITERS[kind](tmp_path / f"rows{kind}", rows), max_row_mb=1)
    assert len(good) == 2 and len(faults) == 1
    assert "longer than 1 MB; shorten it, or raise --max-row-mb" in faults[0]


# --- files that another program wrote in another way ---------------------------------------------------------------


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "rows.json", "rows.jsonl.gz"])
def test_objects_of_several_lines_are_rows(tmp_path, name):
    text = "".join(json.dumps(row, indent=2) + "\n" for row in ROWS)
    path = written(tmp_path, name, gzip.compress(text.encode()) if name.endswith(".gz") else text)
    good, faults = read(path)
    assert [row for _, row in good] == ROWS and not faults
    assert [location.rpartition(":")[2] for location, _ in good] == ["1", "6", "11"]


def test_a_list_in_a_file_of_lines_is_its_rows(tmp_path):
    assert [row for _, row in read(written(tmp_path, "rows.jsonl", json.dumps(ROWS, indent=1)))[0]] == ROWS


def test_a_first_line_that_is_broken_leaves_the_others_readable(tmp_path):
    good, faults = read(written(tmp_path, "rows.jsonl", '{"prompt": "q",\n' + json.dumps(ROWS[2]) + "\n"))
    assert [row for _, row in good] == [ROWS[2]] and ":1: not JSON" in faults[0]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": {"0": "q1", "1": "q2"}, "chosen": {"0": "a", "1": "b"}, "rejected": {"0": "c", "1": "d"}},
        {"prompt": ["q1", "q2"], "chosen": ["a", "b"], "rejected": ["c", "d"]},
    ],
)
def test_columns_are_no_rows(tmp_path, columns, indent):
    (fault,) = read(written(tmp_path, "rows.json", json.dumps(columns, indent=indent)))[1]
    assert ":1: columns, each with the values of all rows, and not a row; write rows (in pandas: frame.to_j" in fault


def test_rows_of_lists_are_rows(tmp_path):
    rows = [{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}, {"chosen": [{"a": 1}], "rejected": [{"a": 1}]}]
    assert [row for _, row in read(tiny.write_rows(tmp_path / "rows.jsonl", rows))[0]] == rows


def test_what_is_no_number_in_json_is_told_with_its_column(tmp_path):
    lines = '{"prompt": "q", "score": NaN}\n{"prompt": "q", "more": {"x": [1, -Infinity]}}\nNaN\n'
    faults = read(written(tmp_path, "rows.jsonl", lines))[1]
    assert [fault.partition("jsonl:")[2] for fault in faults] == [
        "1: NaN is not JSON ('score'); fix or delete the line",
        "2: -Infinity is not JSON; fix or delete the line",
        "3: NaN is not JSON; fix or delete the line",
    ]


DIVIDED = {
    "semicolons": ("prompt;chosen;rejected\nq;a;b\n", ":1: values are separated by semicolons, not by commas"),
    "Excel's line": ("sep=;\nprompt;chosen;rejected\nq;a;b\n", ":1: values are separated by semicolons, not by"),
    "bars": ("prompt|chosen|rejected\nq|a|b\n", ":1: values are separated by bars"),
    "tabs": (
        "prompt\tchosen\trejected\nq\ta\tb\n",
        ":1: values are separated by tabs, not by commas; save the file with commas",
    ),
}


@pytest.mark.parametrize(("text", "said"), DIVIDED.values(), ids=DIVIDED)
def test_a_table_that_something_else_divides_is_refused_once(tmp_path, text, said):
    with pytest.raises(InputError) as caught:
        read(written(tmp_path, "rows.csv", text))
    assert said in str(caught.value) and str(caught.value).endswith(".tsv") == (said == DIVIDED["tabs"][1])


def test_a_table_in_another_encoding_is_called_that(tmp_path):
    with pytest.raises(
        InputError, match=r"rows\.csv:2: not CSV in UTF-8 \(.* 0xe9\); perhaps it is cp1252; save it as UTF-8"
    ):
        read(written(tmp_path, "rows.csv", "prompt,chosen,rejected\nq,é,b\n".encode("cp1252")))


def test_quotes_behind_a_backslash_are_called_that(tmp_path):
    text = 'prompt,chosen,rejected\n"say \\"hi\\"","a","b"\n'
    with pytest.raises(InputError, match=r"rows\.csv:2: not CSV .*; it has quotes after a backslash; in CSV"):
        read(written(tmp_path, "rows.csv", text))
