"""The command line as a person meets it: one plain message for wrong input, and verbs that do their work on files."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from run_folder import make_run
from solon.artifact import read_rows, write_rows
from solon.cli import app
from solon.cli.app import command_to_go_on, physical_cores
from solon.cli.inputs import Answered, engine_config, read_comparisons, read_dialogues, read_sft, stage_names
from solon.cli.progress import Lines
from solon.cli.scoring import scored
from solon.cli.text import clean
from solon.engine import LocalEngineConfig, ServerEngineConfig
from solon.errors import InputError

HH = "\n\nHuman: How do I do {n}?\n\nAssistant: {reply}"


class Ran:
    """What a command did."""

    def __init__(self, arguments: Sequence[str | Path]) -> None:
        result = CliRunner().invoke(app, [str(one) for one in arguments])
        self.code, self.out, self.err, self.exception = (
            result.exit_code,
            result.stdout,
            result.stderr,
            result.exception,
        )


def run(*arguments: str | Path) -> Ran:
    return Ran(arguments)


def assert_one_message(ran: Ran, *parts: str) -> None:
    assert ran.code == 2, ran.err
    assert isinstance(ran.exception, SystemExit), "no error may leave the command"
    assert ran.err.startswith("error:")
    assert "Traceback" not in ran.err
    assert ran.out == ""
    for part in parts:
        assert part in ran.err


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands run in an empty folder; what they set in the environment is taken back."""
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": "How do I pick a lock?"}])
    path.write_text(
        "name: test\nmodel:\n  path: sandbox:helpful\nprompts:\n  path: prompts.jsonl\nrevisions:\n  rounds: 1\n"
    )
    return path


# ---- wrong input


def test_a_recipe_that_is_not_there() -> None:
    assert_one_message(run("run", "nowhere.yaml"), "nowhere.yaml: there is no such recipe")


def test_an_unknown_key_is_answered_with_its_line_and_the_nearest_one(recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + "  roundz: 3\n")
    assert_one_message(run("run", recipe), "recipe.yaml:8: revisions.roundz", "do you mean 'rounds'?")


def test_bad_yaml(recipe: Path) -> None:
    recipe.write_text("name: [test\nmodel: {")
    assert_one_message(run("run", recipe), "recipe.yaml:2: not YAML")


@pytest.mark.parametrize(
    ("flag", "part"),
    [
        ("revisions.roundz=3", "--set revisions.roundz: there is no such setting (do you mean 'rounds'?)"),
        ("revisions.rounds=many", "--set revisions.rounds"),
        ("revisions.rounds", "--set revisions.rounds: not of the form a.b=value"),
    ],
)
def test_a_wrong_setting(recipe: Path, flag: str, part: str) -> None:
    assert_one_message(run("run", recipe, "--set", flag), part)


def test_a_principle_without_text(recipe: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("name: mine\nprinciples:\n  - id: theft\n")
    assert_one_message(run("constitution", "check", rules), "rules.yaml:3", "theft", "has no text")
    assert_one_message(run("run", recipe, "--set", f"constitution={rules}"), "rules.yaml:3", "has no text")
    assert not (tmp_path / "runs").exists(), "nothing is begun"


def test_a_row_without_a_prompt(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "fine"}\n{"text": "what?"}\n')
    assert_one_message(run("run", recipe), "prompts.jsonl:2: a row without a prompt: it has 'text'")


def test_a_model_folder_that_is_none(recipe: Path, tmp_path: Path) -> None:
    ran = run("run", recipe, "--set", f"model.path={tmp_path}")
    assert_one_message(ran, f"{tmp_path}: not a model folder: it has no config.json")
    assert_one_message(run("pm", tmp_path / "prompts.jsonl", "--model", tmp_path), "config.json")
    assert_one_message(run("score", tmp_path, tmp_path / "prompts.jsonl"), "prompts.jsonl:1")


@pytest.mark.parametrize(
    ("command", "holds"),
    [
        (("sft", "FILE", "--model", "sandbox:helpful"), "'prompt' and 'completion'"),
        (("pm", "FILE", "--model", "sandbox:helpful"), "'prompt', 'chosen' and 'rejected'"),
        (("score", "FOLDER", "FILE"), "'prompt' and 'response', or 'messages'"),
    ],
)
def test_a_row_without_what_a_command_reads(tmp_path: Path, command: tuple[str, ...], holds: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a"}\n')
    named = {"FILE": file, "FOLDER": tmp_path}
    ran = run(*(named.get(part, part) for part in command))
    assert_one_message(ran, "rows.jsonl:1: a row without", "it has 'text'", f"a row holds {holds}")


def test_a_server_that_is_not_there(recipe: Path) -> None:
    server = ["model.kind=server", "model.url=http://127.0.0.1:9/v1", "model.model=x", "model.retries=0"]
    ran = run("run", recipe, *(part for setting in server for part in ("--set", setting)))
    assert_one_message(ran, "127.0.0.1:9")


def test_files_that_a_recipe_names_are_missed_before_anything_is_begun(recipe: Path, tmp_path: Path) -> None:
    ran = run("run", recipe, "--set", "prompts.path=nowhere.jsonl")
    assert_one_message(ran, "nowhere.jsonl: there is no such file")
    assert not (tmp_path / "runs").exists()


def test_an_unknown_stage(recipe: Path) -> None:
    assert_one_message(run("run", recipe, "--stages", "01,09"), "there is no stage '09'", "06-evaluation")


def test_a_folder_of_no_run(tmp_path: Path) -> None:
    assert_one_message(run("report", tmp_path), "no stage has left anything here")
    assert_one_message(run("evaluate", tmp_path), "this is not the folder of a run")


def test_a_place_that_cannot_be_written(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_one_message(run("constitution", "import", "prompts.jsonl"), "prompts.jsonl")
    source = tmp_path / "rules.json"
    source.write_text(json.dumps({"constitutions": [{"critic": "What is wrong?", "revision": "Mend it."}]}))
    assert_one_message(run("constitution", "import", source, "--out", "file/rules.yaml"), "file")


def test_control_characters_of_a_file_do_not_reach_the_terminal(recipe: Path) -> None:
    recipe.write_text('"na\\e[31mme": test\n')
    ran = run("run", recipe)
    assert_one_message(ran, "na\\x1b[31mme")
    assert "\x1b" not in ran.err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, **options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("solon.evaluation.rate_battles", broken)
    assert isinstance(run("elo", "battles.csv").exception, ZeroDivisionError)


def test_usage_errors_have_the_same_exit_code() -> None:
    ran = run("pm")
    assert ran.code == 2
    assert "Missing argument 'FILE'" in ran.err


# ---- start, stop


def test_help_is_quick_and_loads_typer_alone() -> None:
    script = (
        "import sys, time; began = time.process_time(); sys.argv = ['solon', '--help']\n"
        "from solon.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'rich', 'transformers', 'yaml', 'asyncio'} & set(sys.modules)\n"
        "print(sorted(heavy), time.process_time() - began, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "Commands:" in done.stdout
    loaded, _, seconds = done.stderr.rpartition(" ")
    assert loaded == "[]", done.stderr
    assert float(seconds) < 1.0, "0.2 s of CPU on a laptop"


def test_no_command_has_more_than_eight_options() -> None:
    for verb in (
        "demo",
        "run",
        "revise",
        "sft",
        "pairs",
        "compare",
        "pm",
        "rl",
        "evaluate",
        "report",
        "score",
        "elo",
        "compare-runs",
    ):
        ran = run(verb, "--help")
        assert ran.code == 0
        options = set(re.findall(r"^  (?:-h, )?(--[a-z-]+)", ran.out, flags=re.MULTILINE)) - {"--help"}
        assert len(options) <= 8, f"{verb}: {sorted(options)}"


def test_python_m_solon_is_solon() -> None:
    done = subprocess.run([sys.executable, "-m", "solon", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert re.match(r"solon \d", done.stdout)


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    """The command waits for a pipe that nobody writes to, so that it is stopped in the middle."""
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    script = (
        "import pathlib, sys\n"
        "from solon.cli import main\n"
        "import solon.evaluation\n"
        "def slow(path, **options):\n"
        "    print('waiting', flush=True)\n"
        "    open(path).read()\n"
        "solon.evaluation.rate_battles = slow\n"
        "main()\n"
    )
    command = [sys.executable, "-c", script, "elo", str(pipe)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == f"Stopped. What was finished is kept; go on with: solon elo {pipe}"


@pytest.mark.parametrize(
    ("given", "next_time"),
    [
        ("run r.yaml --out 'a b'", "solon run r.yaml --out 'a b'"),
        ("run r.yaml --again 01 --set a=b", "solon run r.yaml --set a=b"),
        ("run r.yaml --again=01", "solon run r.yaml"),
        ("pm f.jsonl --again --model m", "solon pm f.jsonl --model m"),
        ("evaluate runs/x --again --set a=b", "solon evaluate runs/x --set a=b"),
    ],
)
def test_the_command_to_go_on_does_not_start_again(given: str, next_time: str) -> None:
    import shlex

    assert command_to_go_on(["/bin/solon", *shlex.split(given)]) == next_time


def test_cores_are_at_most_those_allowed() -> None:
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)


# ---- progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_are_rare_and_say_rate_and_time_left() -> None:
    lines: list[str] = []
    clock = Clock()
    progress = Lines(lines.append, clock=clock)
    progress.start("revise", 100, 40)
    for _ in range(60):
        clock.now += 1.0
        progress.advance()
    progress.end()
    progress.end()
    assert lines == [
        "revise: 40/100",
        "revise: 50/100, 1.0/s, 50 s left",
        "revise: 60/100, 1.0/s, 40 s left",
        "revise: 70/100, 1.0/s, 30 s left",
        "revise: 80/100, 1.0/s, 20 s left",
        "revise: 90/100, 1.0/s, 10 s left",
        "revise: 100/100 in 1 min 0 s, 1.0/s",
    ]


def test_a_slow_step_is_counted_by_the_minute() -> None:
    lines: list[str] = []
    clock = Clock()
    progress = Lines(lines.append, clock=clock)
    progress.start("train", 10)
    clock.now = 30.0
    progress.advance()
    assert lines[-1] == "train: 1/10, 2.0/min, 4 min 30 s left"


# ---- what is given


@pytest.mark.parametrize(
    ("given", "stages"),
    [
        (["01,02"], ["01-revisions", "02-sl-cai"]),
        (["report", "sl-cai"], ["02-sl-cai", "report"]),
        (["06-evaluation"], ["06-evaluation"]),
        (
            ["iteration-2/05,03", "iteration-12/comparisons"],
            ["03-comparisons", "iteration-12/03-comparisons", "iteration-2/05-rl-cai"],
        ),
    ],
)
def test_stages_by_number_or_name(given: list[str], stages: list[str]) -> None:
    assert stage_names(given) == stages


@pytest.mark.parametrize("given", ["07", "iteration-2", "iteration-2/01", "iteration-1/05", "iteration-x/05", "/05"])
def test_a_stage_that_there_is_not_is_refused(given: str) -> None:
    with pytest.raises(InputError, match="there is no stage"):
        stage_names([given])


def test_a_model_is_a_folder_or_a_server() -> None:
    assert engine_config("sandbox:base") == LocalEngineConfig(path="sandbox:base")
    server = engine_config("http://localhost:8000/v1#org/name")
    assert isinstance(server, ServerEngineConfig)
    assert (server.url, server.model) == ("http://localhost:8000/v1", "org/name")
    with pytest.raises(InputError, match="URL#NAME"):
        engine_config("http://localhost:8000/v1")


def test_human_comparisons_are_hard_and_ours_are_soft(tmp_path: Path) -> None:
    path = tmp_path / "hh.jsonl"
    good = {"chosen": HH.format(n=1, reply="Like this."), "rejected": HH.format(n=1, reply="No.")}
    write_rows(path, [good, {**good, "rejected": good["chosen"]}])
    found = read_comparisons(path)
    assert (len(found.rows), dict(found.refused), found.soft) == (1, {"replies are the same": 1}, False)
    turn = [{"role": "assistant", "content": "Yes."}]
    ours = {"prompt": "Why?", "chosen": turn, "rejected": [{**turn[0], "content": "No."}], "probability": 0.8}
    write_rows(path, [ours])
    found = read_comparisons(path)
    assert found.soft
    assert found.rows[0]["prompt"] == [{"role": "user", "content": "Why?"}]
    assert found.rows[0]["id"]
    write_rows(path, [ours, {**ours, "probability": 2}, {"prompt": "Why?"}])
    with pytest.raises(InputError) as caught:
        read_comparisons(path)
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [f"{path}:2", f"{path}:3"]


def test_rows_to_fine_tune_on_are_completions_or_revisions(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{"prompt": "Hello", "completion": "Hi."}])
    assert read_sft(path, seed=0) == [
        {
            "prompt": [{"role": "user", "content": "Hello"}],
            "completion": [{"role": "assistant", "content": "Hi."}],
            "origin": "file",
        }
    ]
    chain = {
        "id": "x",
        "prompt": [{"role": "user", "content": "Hello"}],
        "response": "What?",
        "rounds": [{"principle": "p", "critique": "Rude.", "revision": "Hi."}],
        "truncated": [],
    }
    write_rows(path, [chain])
    assert [(row["completion"][0]["content"], row["origin"]) for row in read_sft(path, seed=0)] == [
        ("Hi.", "revision-1")
    ]


class _Scorer:
    """Scores the length of the reply; longer ones than 5 are too long."""

    def score(self, dialogues: Sequence[tuple[Any, str]]) -> list[float]:
        if any(len(response) > 5 for _, response in dialogues):
            raise InputError("a dialogue of 9 tokens", remedy="5 are read")
        return [float(len(response)) for _, response in dialogues]


def test_a_dialogue_that_is_too_long_has_no_score_and_the_others_have(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(
        path,
        [
            {"prompt": "Hello", "response": "Hi.", "kept": 1},
            {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Much too long"}]},
            {"prompt": "\n\nHuman: Hello", "completion": [{"role": "assistant", "content": "Yes?"}]},
        ],
    )
    dialogues = read_dialogues(path)
    assert all(isinstance(one, Answered) and one.prompt[-1]["content"] == "Hello" for one in dialogues)
    rows = list(scored(_Scorer(), dialogues, progress=Lines(lambda line: None)))
    assert [row["score"] for row in rows] == [3.0, None, 4.0]
    assert rows[0]["kept"] == 1
    assert rows[1]["reason"] == "a dialogue of 9 tokens"
    assert "reason" not in rows[0]


def test_clean_shows_control_characters_and_keeps_text() -> None:
    assert clean("a\x1b]0;x\x07b\n\tz\u202e") == "a\\x1b]0;x\\x07b\n\tz\\u202e"
    assert clean("naive: \u00e9\u4e2d") == "naive: \u00e9\u4e2d"


# ---- verbs end to end


def test_elo_prints_ratings_and_writes_them(tmp_path: Path) -> None:
    battles = tmp_path / "battles.csv"
    battles.write_text("left,right,winner\na,b,left\na,b,left\nb,a,left\nb,c,tie\na,c,left\nc,a,tie\n")
    ran = run("elo", battles)
    assert ran.code == 0, ran.err
    ratings = json.loads(ran.out)
    assert ratings["ratings"][0]["model"] == "a"
    won = {(one["model"], one["against"]): one["value"] for one in ratings["win_rates"]}
    assert won["a", "b"] > 0.5 and all(won[pair] + won[pair[::-1]] == pytest.approx(1) for pair in won)
    assert ratings["battles"] == 6
    written = run("elo", battles, "--out", tmp_path / "deep" / "elo.json")
    assert written.code == 0
    assert json.loads((tmp_path / "deep" / "elo.json").read_text()) == ratings
    assert "best a" in written.out
    battles.write_text("left,right,winner\na,b,up\n")
    assert_one_message(run("elo", battles), "battles.csv:2")


def test_a_shown_constitution_is_a_start_for_ones_own(tmp_path: Path) -> None:
    shown = run("constitution", "show", "harmless")
    assert shown.code == 0
    mine = tmp_path / "mine.yaml"
    mine.write_text(shown.out)
    checked, original = run("constitution", "check", mine), run("constitution", "check", "harmless")
    assert checked.out == original.out
    assert "nothing is wrong" in checked.out


def test_a_published_constitution_is_imported(tmp_path: Path) -> None:
    source, mine = tmp_path / "theirs.json", tmp_path / "mine.yaml"
    source.write_text(json.dumps({"constitutions": [{"critic": "What is wrong?", "revision": "Mend it."}]}))
    assert run("constitution", "import", source, "--out", mine).code == 0
    assert "1 for critique and revision" in run("constitution", "check", mine).out


def test_the_report_ends_with_the_table_the_dialogues_and_the_place(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "made", hostile="\x1b[31m")
    ran = run("report", folder)
    assert ran.code == 0, ran.err
    for part in ("helpful", "sl-cai", "rl-cai", "97.0 %", "n 240", "complies with", "Elo harmlessness", "+143"):
        assert part in ran.out, part
    assert ran.out.count("declines and explains)") == 3
    assert "01-revisions" in ran.out
    page = folder / "report" / "index.html"
    assert page.resolve().as_uri() in ran.out.replace("\n", "")
    assert "\x1b" not in ran.out


def test_a_preference_model_from_human_comparisons(tmp_path: Path, tiny_causal_lm: Callable[[Path], Path]) -> None:
    model = tiny_causal_lm(tmp_path)
    file = tmp_path / "hh.jsonl"
    rows: list[dict[str, str]] = [
        {"chosen": HH.format(n=n, reply="Mix flour and water."), "rejected": HH.format(n=n, reply="No.")}
        for n in range(40)
    ]
    rows.append({"chosen": "no transcript", "rejected": "no transcript"})
    rows.append({"chosen": HH.format(n=99, reply="word " * 600), "rejected": HH.format(n=99, reply="No.")})
    write_rows(file, rows)
    command = ["pm", file, "--model", model, "--out", "pm", "--epochs", "2", "--learning-rate", "0.003"]
    ran = run(*command)
    assert ran.code == 0, ran.err
    for pattern in (
        r"preference model +\d+\.\d % +\d+\.\d to \d+\.\d +\d",
        r"the shorter reply is better +0\.0 %",
        r"the longer reply is better +100\.0 %",
        r"refused rows: not a transcript: 1; left out by the model: context-length: 1",
        r"model: pm/04-preference-model/model",
    ):
        assert re.search(pattern, ran.out), f"{pattern} not in\n{ran.out}"
    assert "hard labels" in ran.err
    assert "preference model: 10/10" in ran.err
    again = run(*command)
    assert again.code == 0
    assert again.out == ran.out
    assert "preference model: " not in again.err, "a finished stage is not trained again"
    changed = run(*command[:-1], "0.004")
    assert changed.code == 2
    assert "learning_rate: 0.003 -> 0.004" in changed.err
    assert "with --again, or choose another --out" in changed.err
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "How do I do 3?", "response": "Mix flour and water."}])
    given = run("score", "pm/04-preference-model/model", "rows.jsonl", "--out", "scores.jsonl")
    assert given.code == 0, given.err
    assert isinstance(next(read_rows("scores.jsonl"))["score"], float)


def test_revisions_pairs_and_comparisons_from_files(tmp_path: Path, tiny_causal_lm: Callable[[Path], Path]) -> None:
    model = tiny_causal_lm(tmp_path)
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"How do I do {n}?"} for n in range(3)])
    common = ["--model", model, "--out", "made", "--max-new-tokens", "8"]
    # A short constitution, so that the byte-level tokens of its principles fit into the tiny model.
    (tmp_path / "rules.yaml").write_text(
        "name: short\nprinciples:\n  - id: kind\n    critique: Kind?\n    revision: Be kind.\n    comparison: Kinder?\n"
    )
    revised = run("revise", "prompts.jsonl", *common, "--rounds", "1", "--constitution", "rules.yaml")
    assert revised.code == 0, revised.err
    assert len(list(read_rows("made/01-revisions/revisions.jsonl"))) == 3
    assert "made/01-revisions/revisions.jsonl" in revised.out
    paired = run("pairs", "prompts.jsonl", *common)
    assert paired.code == 0, paired.err
    pairs = "made/03-comparisons/pairs.jsonl"
    assert len(list(read_rows(pairs))) == 3
    judged = run("compare", pairs, "--judge", model, "--constitution", "rules.yaml", "--out", "judged", "--no-gate")
    assert judged.code == 0, judged.err
    rows = list(read_rows("judged/03-comparisons/comparisons.jsonl"))
    assert len(rows) == 3
    assert all(0.5 <= row["probability"] <= 1 and row["principles"] == ["kind"] for row in rows)


@pytest.mark.parametrize("command", ["elo", "agree", "score m", "constitution import"])
def test_what_is_read_is_not_written_over(command: str, tmp_path: Path) -> None:
    given = tmp_path / "given.yaml"
    given.write_text("kept")
    assert_one_message(run(*command.split(), given, "--out", given), "--out is a file that is read")
    assert given.read_text() == "kept"


def test_an_imported_constitution_is_called_yaml(tmp_path: Path) -> None:
    assert_one_message(run("constitution", "import", "x.json", "--out", tmp_path / "y.json"), "written as YAML")


def test_pairs_are_not_labelled_under_more_principles_than_there_are(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    write_rows(pairs, [{"prompt": "Hello?", "a": "Hi.", "b": "No."}])
    out = tmp_path / "out"
    ran = run("compare", pairs, "--judge", "sandbox:base", "--principles", "99", "--out", out)
    assert_one_message(ran, "comparisons.principles: 99 different principles asked for")
    assert not out.exists()
