"""What a wheel's user has: configurations by name, the package's names, errors that say which extra is missing."""

from __future__ import annotations

import importlib.metadata
import pydoc
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fedvpa
from conftest import Cli
from fedvpa.apps import doctor
from fedvpa.config import find_config, load_config, shipped_configs
from fedvpa.errors import MissingExtra, UserError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["synthetic", "synthetic.yaml", "configs/synthetic.yaml"])
def test_a_shipped_configuration_is_found_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(name) == load_config(ROOT / "configs" / "synthetic.yaml")
    assert cli("config", name).code == 0
    assert cli("study", "02-collapse", "--plan", "--quick").code == 0
    assert cli("study", "configs/studies/02-collapse.yaml", "--plan", "--quick").code == 0


def test_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "synthetic.yaml").write_text("seed: 7\n")
    assert load_config("synthetic.yaml").seed == 7
    assert find_config("elsewhere/synthetic.yaml") == Path("elsewhere/synthetic.yaml")
    with pytest.raises(UserError, match=r"sinthetic: no such configuration; did you mean synthetic?"):
        load_config("sinthetic")


def test_every_configuration_is_shipped() -> None:
    assert set(shipped_configs().values()) == set((ROOT / "configs").rglob("*.yaml"))


def test_data_are_read_by_a_shipped_configuration(experiment: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("config", "jsonl", f"data.path={experiment.parent / 'data.jsonl'}")
    assert done.code == 0
    assert str(experiment.parent / "data.jsonl") in done.out


def test_the_public_names_are_listed() -> None:
    assert sorted(dir(fedvpa)) == sorted(fedvpa.__all__)
    shown = pydoc.render_doc(fedvpa, renderer=pydoc.plaintext)
    assert all(name in shown for name in ("Selector", "User", "load_config"))


def test_a_missing_extra_is_an_import_error() -> None:
    code = (
        "import sys; sys.modules['httpx'] = None\n"
        "try:\n    import fedvpa.client\n"
        "except ImportError as e:\n    print(e.name, '|', e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == 'httpx | httpx is not installed; pip install "fedvpa[serve]"\n'
    assert issubclass(MissingExtra, (UserError, ImportError))


@pytest.mark.parametrize(
    ("origin", "remedy"),
    [(None, "pip install 'fedvpa[serve]'"), ('{"dir_info": {"editable": true}}', "pip install -e '.[serve]'")],
)
def test_the_doctors_remedies_fit_the_installation(
    origin: str | None, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata.PathDistribution, "read_text", lambda *_: origin)
    assert f"pip install {doctor._source('serve')}" == remedy


@pytest.mark.slow
def test_a_wheel_holds_what_it_needs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, cwd=tmp_path)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        metadata = wheel.read(next(n for n in names if n.endswith("METADATA"))).decode()
    configs = {n.removeprefix("fedvpa/configs/") for n in names if n.startswith("fedvpa/configs/")}
    assert configs == {str(f.relative_to(ROOT / "configs")) for f in (ROOT / "configs").rglob("*.yaml")}
    code = {str(f.relative_to(ROOT / "src")) for f in (ROOT / "src").rglob("*.py")}
    assert code <= set(names)
    data = (f for pattern in ("*.j2", "*.css", "*.js", "py.typed") for f in (ROOT / "src").rglob(pattern))
    assert {str(f.relative_to(ROOT / "src")) for f in data} <= set(names)
    for line in ("Classifier: Typing :: Typed", "Project-URL: ", "License-Expression: "):
        assert line in metadata
