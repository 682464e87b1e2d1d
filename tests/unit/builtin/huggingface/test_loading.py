"""Each way in which a model folder can be broken gives its one clear error; none runs code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kuwa.builtin.huggingface.loading import LoadFailed, Source, kind_of, load
from tiny_models import make_folder

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder("tiny-llama", tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def without_a_layer(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut(name: str) -> Callable[[Path], None]:
    def cut_file(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return cut_file


def remove(*names: str) -> Callable[[Path], None]:
    def remove_files(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove_files


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config.json": (remove("config.json"), "holds no config.json"),
    "no weights": (remove("model.safetensors"), "holds no weights"),
    "weights that are a pickle": (pickled, "can run code"),
    "weights cut off": (cut("model.safetensors"), "weight file is damaged"),
    "a config cut off": (cut("config.json"), "configuration"),
    "a tokenizer cut off": (cut("tokenizer.json"), "tokenizer"),
    "no tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), "tokenizer"),
    "a layer without weights": (without_a_layer, "incomplete: model.layers.1.mlp.up_proj.weight"),
    "another width": (lambda f: change(f / "config.json", intermediate_size=96), "do not fit its config.json"),
    "an unknown architecture": (lambda f: change(f / "config.json", model_type="nobody"), "does not know"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_folder_gives_one_clear_error(fault: str, folder: Path) -> None:
    breaking, said = BROKEN[fault]
    breaking(folder)
    with pytest.raises(LoadFailed, match=said) as raised:
        load(Source(path=str(folder)))
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 700


def test_a_config_that_brings_code_runs_none_of_it(folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.T", None]}
    change(folder / "config.json", model_type="evil", auto_map=auto)
    change(folder / "tokenizer_config.json", auto_map=auto)
    with pytest.raises(LoadFailed, match="--trust_remote_code"):
        load(Source(path=str(folder)))
    assert not canary.exists()


def test_what_is_no_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="there is no folder"):
        load(Source(path=str(tmp_path / "nowhere")))
    gguf = tmp_path / "model.gguf"
    gguf.touch()
    with pytest.raises(LoadFailed, match="kuwa-executor llamacpp"):
        load(Source(path=str(gguf)))


def test_a_hub_name_that_is_not_here_is_said_when_offline() -> None:
    with pytest.raises(LoadFailed, match="--offline"):
        load(Source(path="nobody/nothing", offline=True))


def test_a_sound_folder_is_loaded_with_what_belongs_to_it(sound: Path) -> None:
    loaded = load(Source(path=str(sound)))
    assert (loaded.kind, loaded.context_length) == ("text", 1024)
    assert loaded.stops == {loaded.tokenizer.eos_token_id}
    assert not loaded.model.training


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("LlamaForCausalLM", "text"),
        ("GPT2LMHeadModel", "text"),
        ("BertModel", "embedding"),
        ("XLMRobertaForSequenceClassification", "ranking"),
    ],
)
def test_the_architecture_says_what_a_model_is_for(architecture: str, kind: str) -> None:
    from transformers import PreTrainedConfig

    assert kind_of(PreTrainedConfig(architectures=[architecture])) == kind
