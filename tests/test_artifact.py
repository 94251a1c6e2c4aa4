"""Rows outlive kill -9, stages resume, and what changed is told."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solon.artifact import (
    STAGES,
    Journal,
    RowStore,
    RunFolder,
    StageFolder,
    canonical_json,
    content_id,
    derive_seed,
    file_hash,
    ids_of,
    read_json,
    read_numbered_rows,
    read_rows,
    row_line,
    run_chains,
    write_json,
    write_rows,
)
from solon.errors import InputError, StageChanged, TooManyFailures

any_text = st.text(st.characters(codec=None, exclude_categories=()), max_size=30)
any_value = any_text | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none()
any_row = st.dictionaries(any_text, any_value, max_size=4)


def rows_written(folder: Path, name: str = "rows.jsonl") -> list[dict[str, object]]:
    return list(read_rows(folder / name))


# ---- identity


@given(st.dictionaries(st.text(), st.integers() | st.text()))
def test_an_id_does_not_depend_on_the_order_of_keys(row: dict[str, object]) -> None:
    assert content_id(row) == content_id(dict(reversed(row.items())))


def test_ids_and_seeds_are_what_sha256sum_says() -> None:
    # printf '%s' '{"a":"\\u00e9","b":1}' | sha256sum; the seed: the first 16 digits of [0,"row",1], halved
    assert content_id({"b": 1, "a": "\u00e9"}) == "6d9eb45284090145"
    assert derive_seed(0, "row", 1) == derive_seed(0, "row", 1) == 2580747447355300023
    assert len({derive_seed(seed, row, step) for seed in range(5) for row in "abc" for step in range(4)}) == 60


@given(st.lists(st.integers() | st.text()))
def test_a_seed_fits_63_bits(parts: list[object]) -> None:
    assert 0 <= derive_seed(*parts) < 2**63


def test_canonical_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


def test_the_hash_of_a_folder_changes_with_a_byte_and_with_a_name(tmp_path: Path) -> None:
    (tmp_path / "a" / "inner").mkdir(parents=True)
    one, two = tmp_path / "a" / "one", tmp_path / "a" / "inner" / "two"
    one.write_text("1")
    two.write_text("2")
    before = file_hash(tmp_path / "a")
    assert file_hash(tmp_path / "a") == before
    two.write_text("3")
    changed = file_hash(tmp_path / "a")
    two.write_text("2")
    one.rename(tmp_path / "a" / "uno")
    assert len({before, changed, file_hash(tmp_path / "a")}) == 3
    with pytest.raises(InputError, match="no such file or folder"):
        file_hash(tmp_path / "absent")


# ---- files


@given(st.lists(any_row, max_size=5))
def test_rows_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_rows(path, rows)
    assert list(read_rows(path)) == rows
    with Journal(path, key=None) as journal:
        for row in rows:
            journal.append(row)
        assert list(journal.rows()) == rows + rows
        assert len(journal) == 2 * len(rows)
    assert all(row for row in path.read_bytes().splitlines())


@given(st.recursive(any_value, lambda inner: st.lists(inner) | st.dictionaries(any_text, inner), max_leaves=12))
def test_values_are_written_as_json_dumps_writes_them(value: object) -> None:
    assert canonical_json(value) == json.dumps(value, sort_keys=True, separators=(",", ":"))
    line = json.dumps({"a": value}, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    assert row_line({"a": value}) == line


def test_what_json_does_not_have_is_refused_each_time() -> None:
    row: dict[str, object] = {"a": [{1, 2}]}
    for _ in range(2):
        with pytest.raises(TypeError, match="set is not JSON serializable"):
            row_line(row)
    row["a"] = [3]
    assert row_line(row) == b'{"a": [3]}\n'


@given(st.lists(any_row, max_size=6), st.data())
def test_stored_rows_are_the_list_of_them(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]], data: st.DataObject
) -> None:
    stored = RowStore(iter(rows))
    assert list(stored) == rows and len(stored) == len(rows)
    assert stored.content_id == content_id(rows)
    part = data.draw(st.slices(len(rows)))
    assert stored[part] == rows[part]
    assert [stored[place] for place in range(-len(rows), len(rows))] == [*rows, *rows]
    places = data.draw(st.lists(st.sampled_from(range(len(rows))))) if rows else []
    chosen, wanted = stored.at(places), [rows[place] for place in places]
    assert (list(chosen), len(chosen), chosen[part]) == (wanted, len(wanted), wanted[part])
    assert list(stored) == rows, "the rows of a part are read from the same file"
    folder = tmp_path_factory.mktemp("stored")
    write_rows(folder / "a.jsonl", stored)
    write_rows(folder / "b.jsonl", rows)
    assert (folder / "a.jsonl").read_bytes() == (folder / "b.jsonl").read_bytes()


@pytest.mark.parametrize(
    "places", [range(300), range(100, 290), range(0, 300, 7), range(299, -1, -1), [*range(150), 5, *range(150, 300)]]
)
def test_many_stored_rows_come_in_the_order_of_their_places(places: Sequence[int]) -> None:
    rows = [{"id": str(number), "text": "\u00e9\r\n\u2028" * (number % 5)} for number in range(300)]
    stored = RowStore(rows)
    assert stored.content_id == content_id(rows)
    assert list(stored) == rows and list(stored.at(places)) == [rows[place] for place in places]
    assert list(ids_of(stored.at(places))) == [str(place) for place in places]
    with pytest.raises(IndexError):
        stored[300]


@given(st.lists(st.tuples(any_text, any_text, st.booleans()), max_size=6))
def test_ids_are_read_from_stored_rows_whatever_they_hold(parts: list[tuple[str, str, bool]]) -> None:
    rows = [{"id": one, "x": two} if first else {"x": two, "id": one} for one, two, first in parts]
    ids = [row["id"] for row in rows]
    assert list(ids_of(RowStore(rows))) == list(ids_of(rows)) == ids


def test_stored_rows_take_no_memory_to_speak_of() -> None:
    tracemalloc.start()
    stored = RowStore({"id": str(number), "text": "x" * 1000} for number in range(5000))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 5000 * 24 and stored[4999]["id"] == "4999"


def test_gzipped_rows_and_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n\n{"a": 2}'))
    assert [(row.line, row.row) for row in read_numbered_rows(path)] == [(1, {"a": 1}), (3, {"a": 2})]
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(InputError, match=r"rows\.jsonl\.gz:\d: the gzip stream is broken"):
        list(read_rows(path))
    path.write_bytes(b'{"a": 1}\n')
    with pytest.raises(InputError, match="the gzip stream is broken"):
        list(read_rows(path))


def test_of_every_few_lines_the_first_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"a": {number}}}\n' if number % 3 == 0 else "not read\n" for number in range(8)))
    assert [(row.line, row.row["a"]) for row in read_numbered_rows(path, every=3)] == [(1, 0), (4, 3), (7, 6)]
    with pytest.raises(InputError, match=r"rows\.jsonl:2: not JSON"):
        list(read_numbered_rows(path))


@pytest.mark.parametrize(
    "line",
    [
        b'{"a": 123456789012345678901234567890, "b": -0, "c": -0.0, "d": 1E5}',
        b'{"a": 1e999, "b": 5e-324, "c": 0.1000000000000000055511151231257827021181583404541015625}',
        b'{"a": ' + b"9" * 4300 + b"}",
        b'{"a": 1, "b": 2, "a": {"c": 3, "c": 4}}',
        b'{"\\u0061": "\\ud83d\\ude00 \\u0000 \\/ \x7f"}',
        b'{"a": "\\ud83d", "\\ude00": 1}',
        b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}",
        b' \t{"a" : 1 } \r',
    ],
)
def test_a_line_is_read_as_pythons_json_reads_it(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line + b"\n\xef\xbb\xbf" + line)
    assert list(map(repr, read_rows(path))) == [repr(json.loads(line))] * 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": "\t"}', "not JSON: Invalid control character at"),
        (b'{"a": 01}', "not JSON: Expecting ',' delimiter"),
        (b'{"a": 1} {', "not JSON: Extra data"),
        (b"\x00", "not JSON: Expecting value"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"a": 1', "not JSON"),
        (b"[1, 2]", "a list, not an object"),
        (b"3", "a int, not an object"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": ' + b"9" * 5000 + b"}", "an integer of thousands of digits"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": [-Infinity]}', "-Infinity is not JSON"),
        (b'{"a": ' + b"[" * 200_000, "values nested too deeply"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(InputError, match=rf"rows\.jsonl:2: {message}"):
        list(read_rows(path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for read in (read_json, lambda path: list(read_rows(path))):
        with pytest.raises(InputError, match="no such file"):
            read(tmp_path / "absent.json")
        with pytest.raises(InputError, match="a folder, where a file is wanted"):
            read(tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{"old": 1}])
    with pytest.raises(ValueError, match="JSON"):
        write_rows(path, [{"new": 1}, {"new": float("inf")}])
    assert list(read_rows(path)) == [{"old": 1}]
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_json_files(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [1, "\u00e9"]})
    assert read_json(tmp_path / "x.json") == {"a": [1, "\u00e9"]}
    (tmp_path / "x.json").write_text("{\n,")
    with pytest.raises(InputError, match=r"x\.json:2: not JSON"):
        read_json(tmp_path / "x.json")


# ---- the journal


def test_a_journal_knows_its_ids_when_it_is_opened_again(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.append({"id": "a", "n": 1})
        assert "a" in journal
        assert "b" not in journal
    with Journal(tmp_path / "j.jsonl") as journal:
        assert "a" in journal
        assert len(journal) == 1
        with pytest.raises(AssertionError):
            journal.append({"id": "a", "n": 2})
        journal.append({"id": "b", "n": 2})
    assert rows_written(tmp_path, "j.jsonl") == [{"id": "a", "n": 1}, {"id": "b", "n": 2}]


@given(st.lists(any_text, min_size=1, max_size=4), st.data())
def test_a_line_torn_at_any_byte_is_cut_off(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("torn") / "j.jsonl"
    rows = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
    with Journal(path) as journal:
        for row in rows:
            journal.append(row)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = whole[:cut].count(b"\n")
    with Journal(path) as journal:
        assert list(journal.rows()) == rows[:kept]
        for row in rows[kept:]:
            journal.append(row)
    assert path.read_bytes() == whole


def test_a_torn_line_longer_than_a_block_is_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(b'{"id": "a"}\n{"id": "' + b"x" * 200_000)
    with Journal(path) as journal:
        assert len(journal) == 1
    assert path.read_bytes() == b'{"id": "a"}\n'
    assert "torn last line of 200008 bytes" in caplog.text
    path.write_bytes(b"x" * 200_000)
    with Journal(path) as journal:
        assert len(journal) == 0
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("second", "message"),
    [('{"id": "a"}', "stands there twice"), ('{"n": 1}', "a row without 'id'"), ("{", "not JSON")],
)
def test_a_journal_with_a_broken_line_is_refused(tmp_path: Path, second: str, message: str) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text('{"id": "a"}\n' + second + "\n")
    with pytest.raises(InputError, match=f"j.jsonl:2: .*{message}"):
        Journal(path)


def test_a_journal_finds_its_ids_wherever_and_however_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    lines = [
        '{"id": "a"}',
        "",
        '{"n": {"id": "z"}, "id": "\\u0062"}',
        '{"id": "c", "id": "d"}',
        '  {"id" : "quo\\"te\\\\"} ',
        '{"text": "\\"id\\": \\"y\\"", "id": "\\ud83d"}',
        " \t",
        '{"id": "\u00e9"}',
    ]
    path.write_text("\n".join([*lines, '{"id": "tor']), encoding="utf-8")
    with Journal(path) as journal:
        ids = ["a", "b", "d", 'quo"te\\', "\ud83d", "\u00e9"]
        assert len(journal) == len(ids) and all(identity in journal for identity in ids)
        assert not any(identity in journal for identity in ("z", "c", "y", "tor"))
    path.write_text("\n".join([*lines, '{"n": 1, "\\u0069d": "\\u0061"}', ""]), encoding="utf-8")
    with pytest.raises(InputError, match=r"j\.jsonl:9: id 'a' stands there twice"):
        Journal(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "b"} x', "not JSON: Extra data"),
        (b'{"id": "b", "text": "\xff"}', "not UTF-8"),
        (b'{"id": "b", "n": NaN}', "NaN is not JSON"),
        (b'{"id": 1}', "a row without 'id'"),
        (b'["id", "b"]', "a list, not an object"),
    ],
)
def test_no_line_of_a_journal_is_taken_for_its_id_alone(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(b'{"id": "a"}\n\n' + line + b'\n{"id": "c"}\n')
    with pytest.raises(InputError, match=rf"j\.jsonl:3: {message}"):
        Journal(path)


def test_a_torn_line_that_ends_within_a_letter_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(b'{"id": "a"}\n' + '{"id": "\u00e9'.encode()[:-1])
    with Journal(path) as journal:
        assert len(journal) == 1
    assert path.read_bytes() == b'{"id": "a"}\n'


@pytest.mark.parametrize("key", ["id", None])
def test_a_journal_tells_of_every_row_once(tmp_path: Path, key: str | None) -> None:
    told: list[dict[str, object]] = []
    for number in range(3):
        with Journal(tmp_path / "j.jsonl", key, seen=lambda row: told.append(dict(row))) as journal:
            assert told == [{"id": str(before)} for before in range(number)]
            journal.append({"id": str(number)})
        assert told == rows_written(tmp_path, "j.jsonl")
        told.clear()


WRITER = """
import sys
from pathlib import Path
from solon.artifact import Journal
journal = Journal(Path(sys.argv[1]))
for number in range(len(journal), 10**9):
    journal.append({"id": str(number), "text": "x" * (number * 7919 % 30000)})
    print(number, flush=True)
"""


def test_kill_9_at_a_random_moment_loses_no_row_and_makes_none_twice(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    moments = random.Random(0)
    acknowledged = -1
    for _ in range(8):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        acknowledged = max(acknowledged, int(process.stdout.readline()))
        time.sleep(moments.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *map(int, process.stdout.read().split())])
        process.stdout.close()
        process.wait()
        with Journal(path) as journal:
            ids = [int(row["id"]) for row in journal.rows()]
        assert ids == list(range(len(ids)))
        assert len(ids) > acknowledged
    assert acknowledged > 8


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import resource, signal, sys
        from pathlib import Path
        from solon.artifact import Journal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        journal = Journal(Path(sys.argv[1]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        journal.append({"id": "fits", "text": "x" * 500})
        try:
            journal.append({"id": "does not", "text": "x" * 5000})
        except OSError as error:
            print(error)
        journal.append({"id": "fits again", "text": "x" * 100})
    """)
    path = tmp_path / "j.jsonl"
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert "No space left" in done.stdout
    assert [row["id"] for row in read_rows(path)] == ["fits", "fits again"]


# ---- stages

CONFIG = {"rounds": 4, "sampling": {"temperature": 1.0}, "stop": ["a"]}
INPUTS = {"prompts": "1234"}


@pytest.fixture
def stage(tmp_path: Path) -> StageFolder:
    return RunFolder(tmp_path / "run").stage("01-revisions")


def again(stage: StageFolder) -> StageFolder:
    """The stage as another process finds it."""
    stage.close()
    return StageFolder(stage.path, stage.name)


def test_a_stage_begins_resumes_and_is_skipped(stage: StageFolder) -> None:
    assert not stage.finished
    assert stage.begin(config=CONFIG, inputs=INPUTS)
    with stage.journal() as journal:
        journal.append({"id": "a"})
    assert stage.manifest()["status"] == "running"
    stage = again(stage)
    assert stage.begin(config=CONFIG, inputs=INPUTS)
    with stage.journal() as journal:
        assert "a" in journal
    stage.finish(counts={"rows": 1}, tokens=7)
    stage = again(stage)
    assert stage.finished
    assert not stage.begin(config=CONFIG, inputs=INPUTS)
    manifest = stage.manifest()
    assert manifest["stage"] == "01-revisions"
    assert manifest["status"] == "finished"
    assert (manifest["config"], manifest["inputs"]) == (CONFIG, INPUTS)
    assert (manifest["counts"], manifest["failures"], manifest["tokens"]) == ({"rows": 1}, {}, 7)
    assert manifest["packages"]["torch"].startswith("2.")
    assert manifest["python"].startswith("3.")


@pytest.mark.parametrize("finished", [False, True])
def test_a_change_is_refused_and_named(stage: StageFolder, finished: bool) -> None:
    stage.begin(config=CONFIG, inputs=INPUTS)
    if finished:
        stage.finish(counts={})
    config = {"rounds": 2, "sampling": {"temperature": 1.0, "top_p": 0.5}}
    with pytest.raises(StageChanged) as caught:
        again(stage).begin(config=config, inputs={"prompts": "5678"})
    assert str(caught.value).splitlines() == [
        f"01-revisions in {stage.path.parent} was {'finished' if finished else 'begun'} with other settings or inputs:",
        "  config.rounds: 4 -> 2",
        "  config.sampling.top_p: (absent) -> 0.5",
        '  config.stop: ["a"] -> (absent)',
        '  inputs.prompts: "1234" -> "5678"',
        "Run it again from nothing with --again 01-revisions, or choose another --out",
    ]


def test_a_setting_that_is_null_is_as_one_that_an_earlier_version_did_not_have(stage: StageFolder) -> None:
    stage.begin(config={**CONFIG, "old": None}, inputs=INPUTS)
    assert again(stage).begin(config={**CONFIG, "new": None}, inputs=INPUTS)
    with pytest.raises(StageChanged, match=r"config\.new: null -> 0"):
        again(stage).begin(config={**CONFIG, "new": 0}, inputs=INPUTS)


def test_again_starts_from_nothing(stage: StageFolder) -> None:
    stage.begin(config=CONFIG, inputs=INPUTS)
    stage.journal().append({"id": "a"})
    stage.fail(id="b", where="critique", reason="length")
    stage.finish(counts={})
    assert stage.begin(config={}, inputs={}, again=True)
    assert os.listdir(stage.path) == ["manifest.json"]
    assert os.listdir(stage.path.parent) == ["01-revisions"]
    assert stage.failed == set()


def test_files_that_nothing_explains_are_not_taken_over(stage: StageFolder) -> None:
    stage.path.mkdir(parents=True)
    (stage.path / "rows.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(StageChanged, match=r"no manifest\.json.*--again 01-revisions"):
        stage.begin(config={}, inputs={})
    assert stage.begin(config={}, inputs={}, again=True)


def test_failures_are_recorded_once_and_counted(stage: StageFolder) -> None:
    stage.begin(config=CONFIG, inputs=INPUTS)
    stage.fail(id="a", where="critique", reason="length", text="too long")
    stage.fail(id="a", where="critique", reason="other")
    stage.fail(id="a", where="revision", reason="length")
    stage.fail(id="b", where="critique", reason="timeout")
    assert stage.failed == {"a", "b"}
    assert StageFolder(stage.path).failed == {"a", "b"}
    stage.check_failures(attempted=4, limit=0.5)
    stage.check_failures(attempted=0, limit=0.0)
    with pytest.raises(TooManyFailures, match=r"2 of 3 rows failed \(length: 2, timeout: 1\)"):
        stage.check_failures(attempted=3, limit=0.5)
    stage.finish(counts={"rows": 1})
    assert stage.manifest()["failures"] == {"length": 2, "timeout": 1}
    assert rows_written(stage.path, "failures.jsonl")[0] == {
        "id": "a",
        "where": "critique",
        "reason": "length",
        "text": "too long",
    }


def test_a_resumed_stage_tries_failed_rows_again(stage: StageFolder) -> None:
    stage.begin(config=CONFIG, inputs=INPUTS)
    stage.fail(id="a", where="critique", reason="unreachable")
    stage = again(stage)
    stage.begin(config=CONFIG, inputs=INPUTS)
    assert stage.failed == set()
    stage.fail(id="a", where="critique", reason="length")
    stage.finish(counts={})
    assert stage.manifest()["failures"] == {"length": 1}


def test_seconds_add_up_over_an_attempt_that_was_killed(stage: StageFolder) -> None:
    stage.begin(config=CONFIG, inputs=INPUTS)
    began = stage.manifest()["resumed_at"]
    stage.journal().append({"id": "a"})
    os.utime(stage.path / "rows.jsonl", (began + 100, began + 100))
    stage = again(stage)
    stage.begin(config=CONFIG, inputs=INPUTS)
    stage.finish(counts={})
    assert stage.manifest()["seconds"] == pytest.approx(100, abs=5)


def test_metrics_are_appended(stage: StageFolder) -> None:
    stage.begin(config=CONFIG, inputs=INPUTS)
    stage.metric({"step": 1, "loss": 2.0})
    stage.metric({"step": 2, "loss": 1.0})
    stage.finish(counts={})
    assert rows_written(stage.path, "metrics.jsonl") == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]


def test_a_key_in_the_environment_reaches_no_file(stage: StageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "sk-very-secret")
    stage.begin(config={"api_key_env": "SOME_API_KEY"}, inputs={})
    stage.finish(counts={})
    assert "sk-very-secret" not in "".join(file.read_text() for file in stage.path.iterdir())


def test_a_run_has_its_stages_and_no_other(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert [run.stage(name).path for name in STAGES] == [tmp_path / name for name in STAGES]
    with pytest.raises(AssertionError):
        run.stage("07-more")


def test_a_run_that_another_process_holds_is_refused(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys, time
        from solon.artifact import RunFolder
        with RunFolder(sys.argv[1]).held():
            print("held", flush=True)
            time.sleep(60)
    """)
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(InputError, match="another process works in this run"), RunFolder(tmp_path).held():
        pass
    process.kill()
    process.stdout.close()
    process.wait()
    with RunFolder(tmp_path).held():
        assert not RunFolder(tmp_path).stage("01-revisions").path.exists()


# ---- chains


def test_chains_fill_the_window_and_are_pulled_as_others_end() -> None:
    pulled: list[int] = []
    running = most = 0

    def items():
        for number in range(20):
            pulled.append(number)
            yield number

    async def work(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        assert len(pulled) <= done_count() + 4 + 1
        await asyncio.sleep(0.001 * (number % 3))
        running -= 1
        done.append(number)

    done: list[int] = []

    def done_count() -> int:
        return len(done)

    asyncio.run(run_chains(items(), work, window=4))
    assert sorted(done) == list(range(20))
    assert most == 4


def test_a_slow_chain_does_not_hold_up_the_others() -> None:
    done: list[str] = []

    async def main() -> None:
        last = asyncio.Event()

        async def work(item: str) -> None:
            if item == "slow":
                await last.wait()
            if item == "last":
                last.set()
            done.append(item)

        await run_chains(["slow", "a", "b", "c", "last"], work, window=2)

    asyncio.run(main())
    assert done == ["a", "b", "c", "last", "slow"]


def test_the_first_exception_cancels_the_rest() -> None:
    cancelled: list[int] = []
    started: list[int] = []

    async def work(number: int) -> None:
        started.append(number)
        if number == 2:
            raise KeyError("two")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise

    with pytest.raises(KeyError, match="two"):
        asyncio.run(run_chains(range(100), work, window=3))
    assert sorted(cancelled) == [0, 1]
    assert started == [0, 1, 2]


def test_an_iterator_that_fails_cancels_the_chains() -> None:
    def items():
        yield 1
        raise InputError("bad row", path="x.jsonl", line=2)

    async def work(number: int) -> None:
        await asyncio.sleep(60)

    with pytest.raises(InputError, match=r"x\.jsonl:2: bad row"):
        asyncio.run(run_chains(items(), work, window=3))


def test_rows_are_one_json_object_a_line(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.append({"id": "a", "text": "two\nlines \u2028 \ud83d \u00e9"})
    line = (tmp_path / "j.jsonl").read_bytes()
    assert line.count(b"\n") == 1
    assert "\u00e9".encode() in line
    assert json.loads(line)["text"] == "two\nlines \u2028 \ud83d \u00e9"
