"""`fedvpa deploy init`: a folder from which a server and its data holders start a training on their own data."""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from jinja2 import Environment, PackageLoader, StrictUndefined

import fedvpa
from fedvpa.config import find_config, load_config
from fedvpa.errors import UserError
from fedvpa.evaluation.result_files import write_bytes, write_text
from fedvpa.network.node import check_method

VALID_DAYS = 365
APP, SERVER = "app", "server"
_CURVE = ec.SECP384R1()
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")


def init(folder: Path, nodes: int, hosts: tuple[str, ...], port: int, config: Path | None) -> None:
    """Writes ``app/``, ``server/`` and ``node-1/`` ... ; see the README.md that is among them.

    Args:
        nodes: the number of SuperNodes, each with a key of its own.
        hosts: names or addresses under which the server is reached; the first is the one that the nodes use.
        port: the server's port.
        config: the experiment; None: the defaults.

    Raises:
        UserError: the folder is not empty or cannot be written, a host is neither a name nor an address, or the
            experiment does not train over a network.
    """
    places = [_place(host) for host in dict.fromkeys((*hosts, "localhost", "127.0.0.1"))]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError("the folder is not empty", "name a new one", file=folder)
    if config is not None:
        check_method(load_config(config, ["data.name=jsonl"]))
    names = [f"node-{i}" for i in range(1, nodes + 1)]
    _mkdir(folder)
    for part in (APP, SERVER, f"{SERVER}/public-keys", *names):
        _mkdir(folder / part)
    write_text(folder / APP / "experiment.yaml", _experiment(config, nodes))
    values = {"hosts": hosts, "host": hosts[0], "port": port, "nodes": names, "version": fedvpa.__version__}
    _render(folder / APP / "pyproject.toml", "pyproject.toml.j2", values)
    _render(folder / "README.md", "README.md.j2", values)
    for script in ("superlink.sh", "register.sh", "run.sh"):
        _render(folder / SERVER / script, f"{script}.j2", values, mode=0o755)
    authority = _write_certificates(folder / SERVER, hosts[0], places)
    for name in names:
        _write_node_key(folder / name / "key", folder / SERVER / "public-keys" / f"{name}.pub")
        write_bytes(folder / name / "ca.crt", authority)
        _render(folder / name / "supernode.sh", "supernode.sh.j2", values, mode=0o755)


PRIOR_COMPONENTS = 32
"""K of a deployment's compressed prior: with more users than that the download no longer grows."""


def _mkdir(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot be written ({e.strerror})", "choose another folder", file=path) from None


def _experiment(config: Path | None, nodes: int) -> str:
    """The given file, or a short one; the server waits for all nodes, and sends a prior of bounded size.

    It writes a checkpoint after every round: a round lasts much longer here than a checkpoint takes to write.
    """
    tree = {} if config is None else yaml.safe_load(find_config(config).read_text(encoding="utf-8")) or {}
    tree["data"] = {k: v for k, v in (tree.get("data") or {}).items() if k == "pairs_per_client"} | {"name": "jsonl"}
    tree["method"] = {"prior_components": PRIOR_COMPONENTS} | (tree.get("method") or {})
    tree["network"] = {"min_nodes": nodes} | (tree.get("network") or {})
    tree["output"] = {"checkpoint_every": 1} | (tree.get("output") or {})
    head = "# What both ends train; `fedvpa config --keys` lists every key. Where the data is, each node says itself.\n"
    return head + yaml.safe_dump(tree, sort_keys=False)


def _render(path: Path, template: str, values: dict[str, object], mode: int = 0o644) -> None:
    environment = Environment(
        loader=PackageLoader("fedvpa.apps", "deploy_templates"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    write_text(path, environment.get_template(template).render(values))
    path.chmod(mode)


def _write_node_key(private: Path, public: Path) -> None:
    """A SuperNode's key pair, in the format that Flower reads."""
    key = ec.generate_private_key(_CURVE)
    blob = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    _write_secret(private, blob)
    ssh = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_bytes(public, ssh + b"\n")


def _write_certificates(folder: Path, host: str, places: list[x509.GeneralName]) -> bytes:
    """``ca.crt``, ``server.crt`` and ``server.key`` for `host` at `places`; returns the authority's certificate.

    The authority's key is thrown away: nobody can sign with it later.
    """
    authority_key, server_key = ec.generate_private_key(_CURVE), ec.generate_private_key(_CURVE)
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedvpa trial authority")])
    authority = (
        _certificate(authority_name, authority_name, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .add_extension(_usage(certificates=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    certificate = (
        _certificate(name, authority_name, server_key.public_key())
        .add_extension(x509.SubjectAlternativeName(places), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(issuer_key, critical=False)
        .add_extension(_usage(certificates=False), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    write_bytes(folder / "ca.crt", authority.public_bytes(pem))
    write_bytes(folder / "server.crt", certificate.public_bytes(pem))
    secret = server_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write_secret(folder / "server.key", secret)
    return authority.public_bytes(pem)


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
    )


def _usage(certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _place(host: str) -> x509.GeneralName:
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        if address.version == 6:
            problem = f"{host!r} is an IPv6 address, which the scripts cannot listen at or call"
            raise UserError(problem, "give a name that stands for it, or an IPv4 address", field="--host")
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if _NAME.fullmatch(host):
            return x509.DNSName(host)
    problem = f"{host!r} is neither a name nor an address"
    raise UserError(problem, "give it without https:// and port, such as ml.example.org", field="--host")


def _write_secret(path: Path, blob: bytes) -> None:
    """Readable by its owner alone, from the beginning."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as f:
        f.write(blob)
