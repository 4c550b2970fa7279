"""docs/serve.md: its commands and its Python run as they are written."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fedvpa.apps.server.settings import MIB, Settings
from serving import Live

PAGE = (Path(__file__).parents[3] / "docs" / "serve.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(live: Live) -> None:
    answers: list[dict[str, Any]] = []
    for block in blocks("bash"):
        for command in re.findall(r"^curl .*?'$", block, re.DOTALL | re.MULTILINE):
            command = command.replace("http://127.0.0.1:8400", live.url)
            done = subprocess.run(command, shell=True, capture_output=True, text=True)
            assert done.returncode == 0, command
            answers += [json.JSONDecoder().raw_decode(done.stdout)[0]]
    assert any("user" in a for a in answers)
    assert any(a.get("p_a") for a in answers)


def test_python(live: Live, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for block in blocks("python"):
        exec(block.replace("http://127.0.0.1:8400", live.url), names)
    p, best, reward = capsys.readouterr().out.splitlines()
    assert 0 < float(p) < 1
    assert best in ("Fine.", "Fine, thanks!", "And you?")
    assert len(json.loads(reward)) == 1


def test_the_table_of_limits() -> None:
    s = Settings()
    for value in (
        f"| {s.max_bytes // MIB} MiB |",
        f"| {s.max_items} |",
        f"| {s.max_responses} |",
        f"| {s.max_chars:,} |",
        f"| {s.body_seconds:g} seconds each |",
        f"| {s.max_header_bytes // 1024} KiB |",
        f"| `--timeout`, {s.timeout:g} seconds |",
        f"| `--queue`, {s.queue} |",
        f"| `--memory`, {s.memory // MIB} MiB |",
        f"| {s.users:,} |",
    ):
        assert value in PAGE
