"""A deployment as `fedvpa deploy init` writes it, in real processes on loopback, with TLS and SuperNode authentication.

One story per method, since starting processes is what takes the time: a stranger is refused, the SuperLink is killed
and comes back, the result is that of the vectorised engine. With pairs (`fedvpa-gp`) a second training has privacy;
with votes (`fedvpa-laplace`, a table of votes and one of items at each node) none does. In the last training a
SuperNode is killed in mid-round.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from fedvpa.apps.cli import main
from fedvpa.apps.deploy import _write_node_key
from fedvpa.evaluation.result_files import read_metrics, read_results
from fedvpa.federation import checkpoint
from fedvpa.selector import Selector

pytestmark = pytest.mark.slow
ROUNDS, NODES = 3, 3
PATIENCE = 300
"""Seconds; a round takes about four on a quiet machine, since every message starts a process at its node."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


def wait_for(what: Callable[[], object], why: Callable[[], str]) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, why()
        time.sleep(0.2)


class Deployment:
    """The folder, its processes, and how they are ended: also those that Flower started."""

    def __init__(self, folder: Path, votes: bool) -> None:
        self.folder, self.votes = folder, votes
        self.port, *others = free_ports(3 + NODES + 1)
        self.legacy, self.node_ports = others[:2], others[2:]

    def environment(self, **more: object) -> dict[str, str]:
        binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        fixed = {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "PATH": binaries, "HOME": str(self.folder)}
        return {**os.environ, **fixed, **{k: str(v) for k, v in more.items()}}

    def start(self, script: str, log: str, **environment: object) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("ab") as f:
            return subprocess.Popen(
                [self.folder / script], stdout=f, stderr=f, env=self.environment(**environment), start_new_session=True
            )

    def superlink(self) -> subprocess.Popen[bytes]:
        old = dict(zip(("FLEET_PORT", "CONTROL_PORT"), self.legacy, strict=True))
        process = self.start("server/superlink.sh", "superlink.log", BIND="127.0.0.1", PORT=self.port, **old)
        wait_for(self.listening, lambda: self.log("superlink.log"))
        return process

    def listening(self) -> bool:
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def supernode(self, name: str, place: int) -> subprocess.Popen[bytes]:
        data = {"DATA": self.folder / name / "votes"} if self.votes else {}
        call = f"127.0.0.1:{self.port}"
        return self.start(f"{name}/supernode.sh", f"{name}.log", CALL=call, PORT=self.node_ports[place], **data)

    def command(self, script: str, *arguments: str) -> str:
        done = subprocess.run(
            [self.folder / script, *arguments],
            env=self.environment(PORT=self.port),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.log("superlink.log")
        return done.stdout

    def log(self, name: str) -> str:
        path = self.folder / name
        return path.read_text(errors="replace")[-4000:] if path.exists() else f"{name} was not written"

    def rounds(self, run: str) -> int:
        path = self.folder / "server" / run / "metrics.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Those that this deployment started, known by their environment; of one `name` only."""
        found = []
        for process in psutil.process_iter():
            try:
                mine = process.environ().get("HOME") == str(self.folder)
                if mine and name in " ".join(process.cmdline()):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def kill(self, part: str) -> None:
        """kill -9 for all processes of a folder: a machine that goes down."""
        home = str(self.folder / part / "flwr")
        for process in self.processes():
            if process.environ().get("FLWR_HOME") == home:
                process.kill()

    def end(self) -> None:
        for _ in range(50):
            left = self.processes()
            if not left:
                return
            for process in left:
                process.kill()
            time.sleep(0.1)
        pytest.fail(f"not ended: {left}")


def rows(place: int) -> list[str]:
    """Three users whose prompts nobody at another place has seen."""
    lines = []
    for user in range(NODES * place, NODES * place + 3):
        for k in range(10):
            number = (7 * user + k) % 30
            long, short = f"Answer {number}, at some length and with care.", f"No {number}."
            chosen, rejected = (long, short) if user % 2 else (short, long)
            row = {"user_id": f"u{user}", "prompt": f"Question {number} of place {place}?"}
            lines.append(json.dumps({**row, "chosen": chosen, "rejected": rejected}))
    return lines


ITEMS = [f"Answer {k}, at some length and with care." if k % 2 else f"No {k}." for k in range(30)]


def votes(place: int) -> list[str]:
    """Three users who agree with long answers, or with short ones."""
    users = range(NODES * place, NODES * place + 3)
    return [f"u{u},i{(7 * u + k) % 30},{1 if (7 * u + k + u) % 2 else -1}" for u in users for k in range(20)]


def write_votes(folder: Path, lines: list[str]) -> None:
    """A table of votes and, the same everywhere, one of items."""
    folder.mkdir(exist_ok=True)
    (folder / "votes.csv").write_text("\n".join(["user,item,rating", *lines]) + "\n")
    items = (f'i{k},Which one?,"{text}"' for k, text in enumerate(ITEMS))
    (folder / "items.csv").write_text("\n".join(["item,prompt,text", *items]) + "\n")


@pytest.fixture(scope="module", params=["fedvpa-gp", "fedvpa-laplace"])
def deployment(
    request: pytest.FixtureRequest, experiment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("deployment")
    tree = yaml.safe_load(experiment.read_text())
    tree["federation"] |= {"rounds": ROUNDS, "sampled_clients": 6, "dtype": "float64"}
    tree["method"] |= {"name": request.param, "prior_start": 0.25, "ortho_start": 0.25}
    tree["laplace"] = {"rounds": ROUNDS, "prior_start": 0.3, "components": 2, "components_start": 0.7}
    tree["network"] = {"min_nodes": NODES, "timeout": 120}
    tree["output"] |= {"checkpoint_every": 1}
    (folder / "ours.yaml").write_text(yaml.safe_dump(tree))
    given = ["--nodes", str(NODES), "--host", "127.0.0.1", "--config", str(folder / "ours.yaml")]
    assert main(["deploy", "init", str(folder / "trial"), *given]) == 0
    made = Deployment(folder / "trial", votes=request.param == "fedvpa-laplace")
    for place in range(1, NODES + 1):
        write_votes(made.folder / f"node-{place}" / "votes", votes(place))
        (made.folder / f"node-{place}" / "data.jsonl").write_text("\n".join(rows(place)) + "\n")
    try:
        yield made
    finally:
        made.end()


def test_a_deployment(deployment: Deployment, tmp_path: Path) -> None:
    superlink = deployment.superlink()
    assert deployment.command("server/register.sh").count("registered") == NODES
    for place in range(1, NODES + 1):
        deployment.supernode(f"node-{place}", place - 1)
    stranger_is_refused(deployment)
    assert "Successfully started" in deployment.command("server/run.sh")
    wait_for(lambda: deployment.rounds("run") >= 1, lambda: deployment.log("superlink.log"))
    deployment.kill("server")
    assert superlink.wait(timeout=10) == -signal.SIGKILL
    assert not (deployment.folder / "server/run/deployment.json").exists()

    deployment.superlink()
    deployment.command("server/run.sh")
    wait_for((deployment.folder / "server/run/deployment.json").exists, lambda: deployment.log("superlink.log"))
    is_the_vectorised_result(deployment, tmp_path)
    if not deployment.votes:  # the account does not cover the sums of fedvpa-laplace
        privacy_with_secret_noise(deployment, tmp_path)
    a_supernode_is_killed_in_mid_round(deployment)


def stranger_is_refused(deployment: Deployment) -> None:
    """A SuperNode with a key that was not registered."""
    stranger = deployment.folder / "stranger"
    shutil.copytree(deployment.folder / "node-1", stranger, ignore=shutil.ignore_patterns("key", "state", "flwr"))
    _write_node_key(stranger / "key", stranger / "key.pub")
    process = deployment.supernode("stranger", NODES)
    wait_for(lambda: process.poll() is not None, lambda: deployment.log("stranger.log"))
    assert process.returncode != 0
    assert "SuperNode ID" not in deployment.log("stranger.log")


def is_the_vectorised_result(deployment: Deployment, tmp_path: Path) -> None:
    """Although the server was killed in between."""
    run = deployment.folder / "server/run"
    summary = json.loads((run / "deployment.json").read_text())
    assert (summary["users"], summary["nodes"], summary["rounds"]) == (3 * NODES, NODES, ROUNDS)
    assert [r["round"] for r in read_metrics(run / "metrics.jsonl")] == list(range(1, ROUNDS + 1))
    out = vectorised(deployment, tmp_path / "vectorised")
    found, expected = (checkpoint.load(folder / "checkpoints") for folder in (run, out))
    assert found is not None
    assert expected is not None
    one, two = found[0].server, expected[0].server
    assert one.round == two.round == ROUNDS
    assert one.clustered
    names = ("means", "variances", "centroids", "spread", "shares")
    mine = {**one.theta, **one.extra, **{k: getattr(one, k) for k in names}}
    for name, value in {**two.theta, **two.extra, **{k: getattr(two, k) for k in names}}.items():
        assert mine[name].shape == value.shape, name
        assert not value.numel() or float((mine[name] - value).abs().max()) < 1e-9, name
    assert set(summary["clients_accuracy"]) == {"gaussian" if deployment.votes else "amortised", "mixture"}
    selector = Selector.from_pretrained(run)
    assert len(selector.centres) == one.in_use
    if deployment.votes:
        return
    user = selector.infer_user([json.loads(line) for line in rows(1)[:4]])
    assert 0 < selector.prefer("Question 3?", "Answer 3, at length.", "No 3.", user) < 1


def vectorised(deployment: Deployment, out: Path, *settings: str) -> Path:
    """The same experiment in one process, on the pairs of all nodes together."""
    everything = out.with_suffix(".votes" if deployment.votes else ".jsonl")
    lines = [line for place in range(1, NODES + 1) for line in (votes if deployment.votes else rows)(place)]
    if deployment.votes:
        write_votes(everything, lines)
    else:
        everything.write_text("\n".join(lines) + "\n")
    clients = ("federation.clients=9", "federation.unseen_clients=0", "federation.validation_clients=0")
    config = deployment.folder / "app/experiment.yaml"
    assert main(["train", str(config), f"data.path={everything}", *clients, *settings, "--out", str(out)]) == 0
    return out


PRIVACY = (
    "privacy.clip=0.5",
    "privacy.noise=1",
    "privacy.posterior_clip=2",
    "privacy.posterior_noise=1",
    "privacy.moments_clip=20",
    "privacy.moments_noise=5",
    "federation.rounds=2",
)


def privacy_with_secret_noise(deployment: Deployment, tmp_path: Path) -> None:
    """The account is the vectorised engine's; the noise is not what the seed would have given."""
    settings = " ".join((*PRIVACY, "privacy.secret_noise=true"))
    deployment.command("server/run.sh", "--run-config", f'out="private" settings="{settings}"')
    run = deployment.folder / "server/private"
    wait_for((run / "deployment.json").exists, lambda: deployment.log("superlink.log"))
    summary = json.loads((run / "deployment.json").read_text())
    out = vectorised(deployment, tmp_path / "private", *PRIVACY)
    (row, *_) = read_results(out / "results.json")["rows"]
    assert 0 < summary["epsilon"] == pytest.approx(row["epsilon"])
    spent = [[r["epsilon"] for r in read_metrics(folder / "metrics.jsonl")] for folder in (run, out)]
    assert spent[0] == pytest.approx(spent[1])
    assert 0 < spent[0][0] < spent[0][1] == pytest.approx(summary["epsilon"])
    assert (summary["users"], summary["pairs"], summary["clients_accuracy"]) == (3 * NODES, None, {})
    assert not summary["faults"]
    found, seeded = (checkpoint.load(folder / "checkpoints") for folder in (run, out))
    assert found is not None
    assert seeded is not None
    assert all(not torch.equal(found[0].server.theta[k], v) for k, v in seeded[0].server.theta.items())
    for place in range(1, NODES + 1):
        secret = deployment.folder / f"node-{place}/state/secret"
        assert secret.stat().st_mode & 0o077 == 0


def a_supernode_is_killed_in_mid_round(deployment: Deployment) -> None:
    overrides = (
        'out="second" settings="network.timeout=90 federation.sampled_clients=8 federation.rounds=2 laplace.rounds=2"'
    )
    deployment.command("server/run.sh", "--run-config", overrides)
    wait_for(lambda: deployment.rounds("second") >= 1, lambda: deployment.log("superlink.log"))
    mine = str(deployment.folder / "node-2")
    working = lambda: [p for p in deployment.processes("flwr-clientapp") if mine in p.environ().get("FLWR_HOME", "")]  # noqa: E731
    wait_for(working, lambda: deployment.log("node-2.log"))
    deployment.kill("node-2")
    summary = deployment.folder / "server/second/deployment.json"
    wait_for(summary.exists, lambda: deployment.log("superlink.log"))
    faults = json.loads(summary.read_text())["faults"]
    # Somebody whose held-out votes all agree has no pair to be asked, and says so.
    assert set(faults) <= {"silent", "failed", "unreachable"} | ({"refused"} if deployment.votes else set())
    assert set(faults) & {"silent", "failed", "unreachable"}
    assert deployment.rounds("second") == 2
