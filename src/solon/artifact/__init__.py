"""What a run leaves on disk: journals of rows, stage folders that resume, hashes, seeds.

A row is on disk when it is done: it is appended with its newline in one write to the operating system, so that it
survives the death of the process (kill -9) at any moment; a last line that was torn is cut off when the file is opened
again. A stage begun with the same settings and inputs goes on, a finished one is skipped, and one begun with others is
refused with a list of what changed.

    stage = RunFolder(Path("runs/first")).stage("01-revisions")
    if stage.begin(config={"rounds": 4}, inputs={"prompts": file_hash("prompts.jsonl")}):
        with stage.journal() as journal:
            for row in todo:
                if row["id"] not in journal:
                    journal.append(work(row))
        stage.finish(counts={"rows": len(journal)})
"""

from __future__ import annotations

from solon.artifact.chains import Progress, run_chains, silent
from solon.artifact.folder import ITERATED, STAGES, RunFolder, StageFolder, stage_of
from solon.artifact.journal import Journal
from solon.artifact.rows import (
    NumberedRow,
    RowStore,
    canonical_json,
    content_id,
    derive_seed,
    file_hash,
    ids_of,
    need_file,
    read_json,
    read_numbered_rows,
    read_rows,
    row_line,
    write_json,
    write_rows,
)

__all__ = [
    "ITERATED",
    "STAGES",
    "Journal",
    "NumberedRow",
    "Progress",
    "RowStore",
    "RunFolder",
    "StageFolder",
    "canonical_json",
    "content_id",
    "derive_seed",
    "file_hash",
    "ids_of",
    "need_file",
    "read_json",
    "read_numbered_rows",
    "read_rows",
    "row_line",
    "run_chains",
    "silent",
    "stage_of",
    "write_json",
    "write_rows",
]
