"""`fedvpa deploy init` and the run configuration that Flower hands to both ends."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from flwr.app import Context, RecordDict
from flwr.cli.config_utils import load_and_validate

from fedvpa.apps.flower_client import open_node, read_run_config
from fedvpa.config import load_config
from fedvpa.errors import UserError
from fedvpa.preferences.users import pseudonym

ROOT = Path(__file__).parents[2]


@pytest.fixture
def trial(cli: Callable[..., Any], tmp_path: Path) -> Path:
    folder = tmp_path / "trial"
    assert cli("deploy", "init", folder, "--nodes", 2, "--host", "ml.example.org", "--host", "10.0.0.7").code == 0
    return folder


def test_certificates_are_for_the_server_and_loopback(trial: Path) -> None:
    authority = x509.load_pem_x509_certificate((trial / "server/ca.crt").read_bytes())
    server = x509.load_pem_x509_certificate((trial / "server/server.crt").read_bytes())
    server.verify_directly_issued_by(authority)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(n.value) for n in names} == {"ml.example.org", "10.0.0.7", "localhost", "127.0.0.1"}
    assert (trial / "node-1/ca.crt").read_bytes() == (trial / "server/ca.crt").read_bytes()


def test_each_node_has_a_key_of_its_own_that_nobody_else_reads(trial: Path) -> None:
    publics = set()
    for name in ("node-1", "node-2"):
        key = load_ssh_private_key((trial / name / "key").read_bytes(), None)
        public = load_ssh_public_key((trial / f"server/public-keys/{name}.pub").read_bytes())
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert isinstance(public, ec.EllipticCurvePublicKey)
        assert key.public_key().public_numbers() == public.public_numbers()
        assert stat.S_IMODE((trial / name / "key").stat().st_mode) == 0o600
        publics.add(public.public_numbers())
    assert len(publics) == 2
    assert stat.S_IMODE((trial / "server/server.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("app", ["trial", "repository"])
def test_flower_accepts_the_app_and_the_package_reads_its_run_config(app: str, trial: Path, monkeypatch: Any) -> None:
    folder = trial / "app" if app == "trial" else ROOT
    tree, warnings = load_and_validate(folder / "pyproject.toml")
    assert not warnings
    monkeypatch.syspath_prepend(str(folder))
    settings = read_run_config(tree["tool"]["flwr"]["app"]["config"])
    assert settings.data_from == ("nodes" if app == "trial" else "experiment")
    assert settings.config.data.name == ("jsonl" if app == "trial" else "synthetic")


def test_the_experiment_keeps_its_settings_but_not_its_data(cli: Callable[..., Any], tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("data: {name: jsonl, path: /secret.jsonl, pairs_per_client: 7}\nmethod: {name: fedvpl}\n")
    assert cli("deploy", "init", tmp_path / "d", "--nodes", 5, "--config", mine).code == 0
    config = load_config(tmp_path / "d/app/experiment.yaml")
    assert (config.method.name, config.data.pairs_per_client, config.data.path) == ("fedvpl", 7, None)
    assert (config.network.min_nodes, config.method.prior_components) == (5, 32)
    assert config.output.checkpoint_every == 1


def test_mistakes_are_one_line(cli: Callable[..., Any], trial: Path, tmp_path: Path) -> None:
    ended = cli("deploy", "init", trial)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "not empty" in ended.err
    (tmp_path / "bad.yaml").write_text("method: {name: fedbiscuit}\n")
    ended = cli("deploy", "init", tmp_path / "e", "--config", tmp_path / "bad.yaml")
    assert ended.code == 2
    assert "fedbiscuit does not train over a network" in ended.err
    ended = cli("deploy", "init", tmp_path / "e", "--host", "ml.example.org:8000")
    assert ended.code == 2
    assert "'ml.example.org:8000' is neither a name nor an address" in ended.err
    assert not (tmp_path / "e").exists()


def test_the_scripts_say_what_comes_first(trial: Path, tmp_path: Path) -> None:
    def said(script: str, **environment: str) -> tuple[int, str]:
        given = {**os.environ, **environment}
        done = subprocess.run([trial / script], env=given, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    code, text = said("server/run.sh")
    assert (code, text.count("\n")) == (2, 1)
    assert "run superlink.sh and register.sh first" in text
    for given, path in (({}, trial / "node-1/data.jsonl"), ({"DATA": "mine.jsonl"}, tmp_path / "mine.jsonl")):
        assert said("node-1/supernode.sh", **given)[1].startswith(f"error: {path}: no such file; ")


def context(node: dict[str, Any], **run: Any) -> Context:
    given = {"experiment": "", "settings": "", "out": "run", "data-from": "experiment"} | run
    return Context(1, 1, node, RecordDict(), given)


def test_a_share_of_the_experiment_and_a_file_of_ones_own(experiment: Path, tmp_path: Path) -> None:
    shares = [
        open_node(context({"partition-id": i, "num-partitions": 3}, experiment=str(experiment))) for i in range(3)
    ]
    assert sorted(n for node in shares for n in node.names) == [f"{i:08d}" for i in range(8)]
    own = {"data.path": str(experiment.parent / "data.jsonl"), "state-dir": str(tmp_path)}
    node = open_node(context(own, **{"experiment": str(experiment), "data-from": "nodes"}))
    assert sorted(node.names) == sorted(pseudonym(f"u{i}") for i in range(12))
    assert list(node.names) == sorted(node.names)


@pytest.mark.parametrize(
    ("node", "run", "message"),
    [
        ({"partition-id": 3, "num-partitions": 3}, {}, "partition-id: is missing"),
        ({"data.path": "x"}, {"data-from": "nodes"}, "state-dir: is missing"),
        ({"state-dir": "x"}, {"data-from": "nodes"}, "data.path: is missing"),
        ({"data-path": "x"}, {"data-from": "nodes"}, "data-path: unknown key of the node config"),
        ({}, {"data-from": "moon"}, "data-from: unknown value 'moon'"),
        ({}, {"experiment": "nowhere.yaml"}, "no such configuration"),
    ],
)
def test_a_bad_configuration_is_named(
    node: dict[str, Any], run: dict[str, Any], message: str, experiment: Path
) -> None:
    with pytest.raises(UserError, match=message):
        open_node(context(node, **{"experiment": str(experiment)} | run))
