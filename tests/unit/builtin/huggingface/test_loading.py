"""Each way in which a model folder can be broken gives its one clear error; none runs code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kuwa.builtin.huggingface.loading import LoadFailed, Source, is_wanted, kind_of, load
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


def as_gguf(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.gguf")


def split_and_lost(folder: Path) -> None:
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def an_adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


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
    "weights that are a GGUF file": (as_gguf, "kuwa-executor llamacpp"),
    "an index without its weights": (split_and_lost, "could not be read"),
    "an adapter alone": (an_adapter, "--lora"),
    "a model that translates": (lambda f: change(f / "config.json", model_type="t5"), "encoder-decoder"),
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


def test_a_config_that_wants_code_asks_nobody_and_ends(folder: Path, tmp_path: Path) -> None:
    """As it is started: with a standard input that would answer yes."""
    canary = tmp_path / "canary"
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    change(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Config"})
    argv = ["huggingface", "--model_path", str(folder), "--ignore_kernel"]
    started = [sys.executable, "-m", "kuwa.executor.cli", *argv]
    done = subprocess.run(started, input="y\n" * 9, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 4
    assert "--trust_remote_code" in done.stderr
    assert "[y/N]" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not canary.exists()


# peft asks transformers by names that this is about to forget.
OF_PEFT = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def adapter(folder: Path, base: Path, rank_of: str = "q_proj") -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    flipped = rank_of == "c_attn"  # as GPT-2 stores it
    config = LoraConfig(r=4, target_modules=[rank_of], init_lora_weights=False, fan_in_fan_out=flipped)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


@OF_PEFT
def test_an_adapter_changes_what_the_model_says(sound: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    put_on = adapter(tmp_path / "lora", sound)
    ids = torch.tensor([[5, 6, 7]])
    plain = load(Source(path=str(sound))).model(ids).logits
    found = load(Source(path=str(sound), lora=str(put_on))).model(ids).logits
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sound), put_on).eval()(ids).logits
    assert not torch.allclose(found, plain, atol=1e-2)
    assert torch.allclose(found, expected, atol=1e-5)


@OF_PEFT
def test_an_adapter_that_does_not_fit_is_refused(sound: Path, tmp_path: Path) -> None:
    other = make_folder("tiny-gpt2", tmp_path / "gpt2")
    with pytest.raises(LoadFailed, match="does not fit this model"):
        load(Source(path=str(sound), lora=str(adapter(tmp_path / "lora", other, "c_attn"))))
    with pytest.raises(LoadFailed, match="is no adapter"):
        load(Source(path=str(sound), lora=str(sound)))


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_number_format_is_the_one_that_was_asked_for(sound: Path, dtype: str, expected: torch.dtype) -> None:
    assert load(Source(path=str(sound), dtype=dtype)).model.dtype == expected


@pytest.mark.parametrize("bits", [4, 8])
def test_fewer_bits_without_what_they_need_are_refused_before_anything_is_loaded(bits: Any) -> None:
    with pytest.raises(LoadFailed, match=f"--load_{bits}bits needs") as raised:
        load(Source(path="/nowhere", bits=bits))
    assert "\n" not in str(raised.value)


def test_only_what_a_model_is_made_of_is_fetched() -> None:
    fetched = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.model", "1_Pooling/config.json"]
    left = ["pytorch_model.bin", "onnx/model.onnx", "consolidated.safetensors", "model.fp16.safetensors", "a.py", "x/a"]
    assert [name for name in (*fetched, *left) if is_wanted(name, code=False)] == fetched
    assert is_wanted("a.py", code=True)


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
