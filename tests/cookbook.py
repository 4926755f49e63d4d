"""The store behind docs/cookbook.md, and its questions with their answers.

`python tests/cookbook.py` writes the answers into the page, when a question has changed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from readme import ROOT, Block, read_blocks

PAGE = ROOT / "docs" / "cookbook.md"
RIVAL = "claude-haiku-4-5"
_EXAMPLE = "examples/cartpole"
_BASELINE = f"policy:{_EXAMPLE}/baseline"
_SMALL = ["--select", "4", "--accept", "10", "--report", "10", "--draws", "2", "--workers", "1"]
Run = Callable[[list[str]], str]


def build_store(folder: Path, run: Run, *brief: str) -> None:
    """Fill `trajnote-store` of a folder that holds the examples, through the command line.

    Args:
        folder: the current one.
        run: the command line.
        brief: options of `refine` that shorten it, where its numbers do not matter.
    """
    asked = ["annotate", "run", "--provider", "file", "--model", RIVAL]
    run(["import", f"{_EXAMPLE}/rollouts"])
    run(["annotate", "run", "--provider", "recorded", "--answers", f"{_EXAMPLE}/answers.jsonl", "--model", "claude"])
    run([*asked, "--export", "requests.jsonl"])
    answers = [json.loads(line)["text"] for line in Path(f"{_EXAMPLE}/answers.jsonl").read_text().splitlines()]
    requests = [json.loads(line)["custom_id"] for line in (folder / "requests.jsonl").read_text().splitlines()]
    replies = (_reply(request, answer) for request, answer in zip(requests, _contradict(answers), strict=True))
    (folder / "answers.jsonl").write_text("".join(json.dumps(reply) + "\n" for reply in replies))
    run([*asked, "--answers", "answers.jsonl"])
    run(["annotations", "replay", "--limit", "12", "--policy", _BASELINE])
    run(["refine", *_SMALL, "--baseline", _BASELINE, *brief])


def questions() -> list[tuple[Block, Block | None, bool]]:
    """Each question, its answer if there is one, and whether only the columns of the answer are the same everywhere."""
    text = PAGE.read_text()
    lines, blocks = text.splitlines(), read_blocks(text)
    return [
        (block, after if after is not None and after.language == "text" else None, "*varies*" in lines[block.line - 3])
        for block, after in zip(blocks, [*blocks[1:], None], strict=True)
        if block.language == "sql"
    ]


def _contradict(answers: list[str]) -> Iterator[str]:
    """Scripted answers: every fifth label turned round, every ninth an action that does not exist."""
    number = 0
    for answer in answers:
        content = json.loads(answer)
        for label in content["labels"]:
            number += 1
            if number % 5 == 0:
                label["suggested_action"] = "push_left" if label["suggested_action"] == "push_right" else "push_right"
                label["confidence"] = round(label["confidence"] - 0.2, 2)
            if number % 9 == 0:
                label["suggested_action"] = "jump"
        yield json.dumps(content)


def _reply(request_id: str, text: str) -> dict[str, object]:
    usage = {"input_tokens": 900, "cache_read_input_tokens": 2100, "output_tokens": len(text) // 4}
    content = [{"type": "text", "text": text}]
    message = {"model": RIVAL, "role": "assistant", "stop_reason": "end_turn", "content": content, "usage": usage}
    return {"request_id": request_id, "message": message}


def _rewrite(run: Run) -> None:
    """Put the answers of today's program into the page."""
    text = PAGE.read_text()
    for block, answer, _ in questions():
        printed = "\n".join(line.rstrip() for line in run(["sql", block.content]).rstrip().splitlines())
        asked = f"```sql\n{block.content}\n```\n"
        old = f"{asked}\n```text\n{answer.content}\n```\n" if answer else asked
        text = text.replace(old, f"{asked}\n```text\n{printed}\n```\n")
    PAGE.write_text(text)


def _main() -> None:
    import os
    import subprocess
    import tempfile

    def run(words: list[str]) -> str:
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", *words], capture_output=True, text=True, check=True
        ).stdout

    os.environ |= {"COLUMNS": "100", "PYTHONPATH": str(ROOT)}
    os.environ.pop("TRAJNOTE_STORE", None)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "examples").symlink_to(ROOT / "examples")
        os.chdir(name)
        build_store(Path(name), run)
        _rewrite(run)


if __name__ == "__main__":
    _main()
