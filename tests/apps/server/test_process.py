"""`fedvpa serve` as a process of its own: it starts, answers, and on SIGTERM finishes what is under way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

PAIR = {"prompt": "Hi", "a": "Hello there", "b": "No"}


@pytest.fixture
def served(finished: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FEDVPA_TOKEN": "of the environment"}
    command = [sys.executable, "-m", "fedvpa.apps.cli", "serve", str(finished), "--port", "0"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line + process.stderr.read()
        yield process, found[0]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ready(http: httpx.Client) -> None:
    """Waits until it takes requests, as whoever deploys it does."""
    for _ in range(600):
        try:
            if http.get("/readyz").status_code == 200:
                return
        except httpx.ConnectError:
            pass
        time.sleep(0.05)
    raise AssertionError("not ready after 30 seconds")


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_it_starts_answers_and_drains(served: tuple[subprocess.Popen[str], str], signum: int) -> None:
    process, url = served
    headers = {"authorization": "Bearer of the environment"}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as http:
        ready(http)
        assert http.get("/healthz").json() == {"status": "ok"}
        assert httpx.post(f"{url}/v1/score", json={"pairs": [PAIR]}).status_code == 401
        assert http.post("/v1/score", json={"pairs": [PAIR]}).status_code == 200
        # so much that it is still being computed when the signal comes
        long = {"pairs": [{"prompt": f"{i} " * 40, "a": f"{i} " * 100, "b": f"no {i} " * 80} for i in range(200)]}
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(http.post("/v1/score", json=long)))
        thread.start()
        time.sleep(0.3)
        running = not answers
        process.send_signal(signum)
        thread.join(60)
    assert running, "the request was too short for this test"
    assert answers[0].status_code == 200
    assert len(answers[0].json()["p_a"]) == 200
    assert process.wait(30) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")
    assert process.stderr is not None
    assert process.stderr.read().strip() == "stopped"


@pytest.mark.slow
def test_a_language_model_that_is_damaged_ends_it(finished: Path, tmp_path: Path) -> None:
    """It is seen when the weights are read, behind the first answer of /healthz, and ends the process in one line."""
    import shutil

    run, model = shutil.copytree(finished, tmp_path / "run"), tmp_path / "model"
    info = json.loads((run / "model.json").read_text())
    shutil.copytree(info["config"]["backbone"]["model"], model)
    info["config"]["backbone"]["model"] = str(model)
    (model / "model.safetensors").write_bytes(b"nothing")
    (run / "model.json").write_text(json.dumps(info))
    command = [sys.executable, "-m", "fedvpa.apps.cli", "serve", str(run), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
