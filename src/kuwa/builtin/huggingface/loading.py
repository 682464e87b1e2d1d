"""Makes a model of a folder or a hub name: what kind it is, its weights, its tokenizer. Called once, by the executor.

Everything that can be wrong with a folder becomes one LoadFailed that says what and where. Only safetensors are
read, code from the folder runs only where the operator said so, and a layer without weights is an error: a model
that is random in one layer still answers.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from kuwa.builtin.huggingface.placement import placement, quantisation, why_not_quantised

log = logging.getLogger(__name__)

Kind = Literal["text", "images", "embedding", "ranking"]
PROGRESS_STEP = 0.2
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)


class LoadFailed(Exception):
    """The model cannot be loaded; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What to load and how. `path` is a folder or a hub name; once it is a folder, `name` is what was given."""

    path: str
    name: str = ""
    tokenizer: str | None = None
    revision: str | None = None
    lora: str | None = None
    dtype: str = "auto"
    bits: Literal[0, 4, 8] = 0
    trust_remote_code: bool = False
    offline: bool = False


@dataclass(slots=True)
class Loaded:
    """`model` is in evaluation mode on its device, made of `folder`. `processor`: what makes its inputs of images, of a
    model that sees."""

    kind: Kind
    folder: Path
    model: Any
    tokenizer: Any
    config: Any
    generation_config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    stops: frozenset[int] = frozenset()
    context_length: int = 0
    processor: Any | None = None


def load(source: Source) -> Loaded:
    """Raises LoadFailed."""
    _check_installed(source)
    source = _on_this_disk(source)
    _check_folder(source)
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    before = hf_logging.set_tqdm_hook(_progress)
    try:
        return _load(source)
    finally:
        hf_logging.set_tqdm_hook(before)


def _check_installed(source: Source) -> None:
    missing = [name for name in ("torch", "transformers", "accelerate", "huggingface_hub") if find_spec(name) is None]
    if missing:
        raise LoadFailed(f"{' and '.join(missing)} not installed here; install with: pip install 'kuwa[huggingface]'")
    installed = find_spec("bitsandbytes") is not None
    if fault := why_not_quantised(source.bits, installed=installed, gpus=1 if not installed else len(_free_memory())):
        raise LoadFailed(fault)
    if source.lora and find_spec("peft") is None:
        raise LoadFailed("--lora needs peft; install it with: pip install peft")


def _check_folder(source: Source) -> None:
    """What can be said better than transformers says it."""
    path = Path(source.path)
    if not (path / "config.json").is_file():
        hint = "; an adapter is put on its model with --lora" if (path / "adapter_config.json").is_file() else ""
        raise LoadFailed(f"{source.name} holds no config.json, so it is no transformers model folder{hint}")
    weights = [*path.glob("*.safetensors"), *path.glob("*.safetensors.index.json")]
    if not weights:
        others = [p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for p in path.glob(pattern)]
        hint = f"; {others[0]} is not read, since " + _why_not(others[0]) if others else ""
        raise LoadFailed(f"{source.name} holds no weights (*.safetensors){hint}")


def _on_this_disk(source: Source) -> Source:
    """The same with folders for all that was named; what is on the hub is downloaded. Raises LoadFailed."""
    return replace(
        source,
        name=source.path,
        path=str(_folder(source, source.path, source.revision)),
        tokenizer=str(_folder(source, source.tokenizer, None)) if source.tokenizer else None,
        lora=str(_folder(source, source.lora, None)) if source.lora else None,
    )


def _folder(source: Source, given: str, revision: str | None) -> Path:
    path = Path(given).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        what = "a GGUF file; serve it with: kuwa-executor llamacpp" if path.suffix == ".gguf" else "a file"
        raise LoadFailed(f"{path} is {what}; huggingface needs a folder or a hub name")
    if not _HUB_NAME.fullmatch(given):
        raise LoadFailed(f"there is no folder {path}")
    return _downloaded(given, revision or "main", offline=source.offline, code=source.trust_remote_code)


def _downloaded(name: str, revision: str, *, offline: bool, code: bool) -> Path:
    """The folder of a model on the hub. Where the hub cannot be asked, what was downloaded before serves."""
    from huggingface_hub import constants
    from huggingface_hub.utils import logging as hub_logging

    from kuwa.executor.hub import CannotDownload, HubUnreachable, snapshot, snapshot_here
    from kuwa.executor.hub_progress import shown

    hub_logging.set_verbosity_error()  # what goes wrong is said once, by us
    here = snapshot_here(name, revision)
    if offline or constants.HF_HUB_OFFLINE:
        if here is None:
            how = "--offline" if offline else "HF_HUB_OFFLINE"
            raise LoadFailed(f"{name} is not on this machine, and {how} forbids to ask the hub")
        return here
    try:
        with shown() as report:
            return snapshot(name, revision, lambda file: is_wanted(file, code=code), report)
    except HubUnreachable as error:
        if here is None:
            raise LoadFailed(str(error)) from error
        log.warning("%s What was downloaded before is served.", error)
        return here
    except CannotDownload as error:
        raise LoadFailed(str(error)) from error


def is_wanted(file: str, *, code: bool) -> bool:
    """Whether a model is made of this file of its repository: no other formats of the same weights, no `code` unless
    it is to be run."""
    if "/" in file:
        return bool(re.fullmatch(r"\d+_\w+/config\.json|additional_chat_templates/[\w-]+\.jinja", file))
    name, _, kind = file.rpartition(".")
    if kind == "safetensors":
        return not name.startswith("consolidated") and not re.fullmatch(r"model\.\w+", name)
    return kind in ("json", "txt", "model", "jinja", "tiktoken") or (code and kind == "py")


def _why_not(name: str) -> str:
    if name.endswith(".gguf"):
        return "that is for kuwa-executor llamacpp"
    return "such files can run code when they are opened; convert it to safetensors"


def _load(source: Source) -> Loaded:
    import torch

    config = _guarded(source, "its configuration", lambda: _config(source))
    kind = kind_of(config)
    if getattr(config, "is_encoder_decoder", False):
        raise LoadFailed(f"{source.name} is an encoder-decoder model; only models that go on from a text are served")
    tokenizer = _guarded(source, "its tokenizer", lambda: _tokenizer(source))
    processor = (
        _guarded(source, "its image processor", lambda: _processor(source, tokenizer)) if kind == "images" else None
    )
    log.info("loading %s (%s)", source.name, ", ".join(config.architectures or ["unknown architecture"]))
    model = _guarded(source, "its weights", lambda: _model(source, config, kind))
    model.eval()
    torch.set_grad_enabled(mode=False)
    own: dict[str, Any] = {}
    if getattr(model, "generation_config", None) is not None:
        own = model.generation_config.to_diff_dict()
    return Loaded(
        kind=kind,
        folder=Path(source.path),
        model=model,
        tokenizer=tokenizer,
        config=config,
        generation_config=own,
        stops=_stops(own, config, tokenizer),
        context_length=_context_length(config, tokenizer),
        processor=processor,
    )


def kind_of(config: Any) -> Kind:
    """What a model is for, by the architecture that its configuration names."""
    name = str((config.architectures or [""])[0])
    if name.endswith("ForSequenceClassification"):
        return "ranking"
    if getattr(config, "vision_config", None) is not None:
        return "images"
    if name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) or not name:
        return "text"
    return "embedding"


def _transformers() -> Any:
    """The package, whose types say less than they are."""
    return import_module("transformers")


def _common(source: Source) -> dict[str, Any]:
    # trust_remote_code is always given: where it is not, transformers asks on standard input.
    return {
        "trust_remote_code": source.trust_remote_code,
        "revision": source.revision,
        "local_files_only": source.offline,
    }


def _config(source: Source) -> Any:
    return _transformers().AutoConfig.from_pretrained(source.path, **_common(source))


def _tokenizer(source: Source) -> Any:
    common = _common(source)
    if source.tokenizer:
        common["revision"] = None
    tokenizer = _transformers().AutoTokenizer.from_pretrained(source.tokenizer or source.path, **common)
    fast = getattr(tokenizer, "_tokenizer", None)
    if fast is not None:
        # A tokenizer that truncates or pads is changed by each call, and cannot be used by two threads.
        fast.no_truncation()
        fast.no_padding()
    return tokenizer


def _processor(source: Source, tokenizer: Any) -> Any:
    if find_spec("PIL") is None:
        raise LoadFailed("images need Pillow, which is not installed; install with: pip install 'kuwa[huggingface]'")
    processor = _transformers().AutoProcessor.from_pretrained(source.path, **_common(source))
    processor.tokenizer = tokenizer
    return processor


def _model(source: Source, config: Any, kind: Kind) -> Any:
    transformers = _transformers()
    auto = {
        "text": "AutoModelForCausalLM",
        "images": "AutoModelForImageTextToText",
        "embedding": "AutoModel",
        "ranking": "AutoModelForSequenceClassification",
    }[kind]
    given: dict[str, Any] = {**_common(source), "config": config, "dtype": source.dtype, "use_safetensors": True}
    # Weights of another shape are to be reported by name; `_check_complete` refuses them.
    given["ignore_mismatched_sizes"] = True
    if source.bits:
        given["quantization_config"] = transformers.BitsAndBytesConfig(**quantisation(source.bits))
    given |= placement(_free_memory())
    model, told = getattr(transformers, auto).from_pretrained(source.path, output_loading_info=True, **given)
    _check_complete(told)
    if source.lora:
        _put_on(model, source.lora)
    return model


def _free_memory() -> list[int]:
    """The free bytes of each GPU that may be used."""
    import torch

    return [torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count())]


def _put_on(model: Any, adapter: str) -> None:
    """Add a LoRA adapter's weights to the model's. Raises LoadFailed."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (Path(adapter) / name).is_file():
            raise LoadFailed(f"--lora {adapter} holds no {name}, so it is no adapter")
    try:
        told = model.load_adapter(adapter)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise LoadFailed(
            f"--lora {adapter} does not fit this model ({_first(' '.join(str(error).split()))})"
        ) from error
    wrong = [*(told.missing_keys or ()), *(told.unexpected_keys or ()), *(told.mismatched_keys or ())]
    if wrong:
        raise LoadFailed(f"--lora {adapter} does not fit this model: {_some(sorted(map(str, wrong)))}")


def _check_complete(told: Mapping[str, Any]) -> None:
    """Raises LoadFailed where layers got no weights, or weights of another shape."""
    mismatched = sorted(str(entry[0]) for entry in told.get("mismatched_keys") or ())
    if mismatched:
        raise LoadFailed(f"its weights do not fit its config.json: {_some(mismatched)} have another shape")
    missing = sorted(map(str, told.get("missing_keys") or ()))
    missing = [name for name in missing if "position_ids" not in name and not name.startswith("pooler.")]
    if missing:
        raise LoadFailed(f"its weights are incomplete: {_some(missing)} missing; download the model again")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _stops(own: Mapping[str, Any], config: Any, tokenizer: Any) -> frozenset[int]:
    """The ids that end an answer, by whoever names one."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    named: tuple[Any, ...] = (
        own.get("eos_token_id"),
        getattr(text, "eos_token_id", None),
        getattr(tokenizer, "eos_token_id", None),
    )
    ids: set[int] = set()
    for value in named:
        several: list[Any] = [*value] if isinstance(value, list | tuple) else [value]
        ids.update(int(one) for one in several if one is not None)
    return frozenset(ids)


def _context_length(config: Any, tokenizer: Any) -> int:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    if not found:
        found = getattr(tokenizer, "model_max_length", 0)
    return int(found) if found and found < 1 << 30 else 1 << 15


def _guarded(source: Source, what: str, work: Callable[[], Any]) -> Any:
    """`work`'s result; whatever transformers and its kin raise becomes one LoadFailed."""
    try:
        return work()
    except LoadFailed as error:
        raise LoadFailed(f"{source.name} cannot be loaded: {error}") from error
    except Exception as error:
        raise LoadFailed(f"{source.name} cannot be loaded: {explained(error, what)}") from error


def explained(error: Exception, what: str) -> str:
    """One line on why a part of the model could not be loaded."""
    import json

    said = " ".join(str(error).split())
    kind = type(error).__name__
    if "trust_remote_code" in said:
        return "it brings code of its own, which is not run; if you trust it, start with --trust_remote_code"
    if kind == "SafetensorError":
        return f"a weight file is damaged ({said}); download the model again"
    if isinstance(error, json.JSONDecodeError):
        return f"{what} is damaged ({said})"
    if isinstance(error, ImportError):
        return f"{what} needs a package that is not installed here ({_first(said)})"
    if isinstance(error, OSError):
        return f"{what} could not be read ({_first(said)}); check the name, the folder, and the network or --offline"
    if kind == "OutOfMemoryError" or "not enough memory" in said:
        return "there is not enough memory for its weights; try --load_8bits, --load_4bits or a smaller model"
    if isinstance(error, ValueError | KeyError) and "does not recognize this architecture" in said:
        return f"this version of transformers does not know its architecture ({_first(said)})"
    return f"{what} could not be understood ({kind}: {_first(said)})"


def _first(said: str) -> str:
    """The first sentence of a long message."""
    return said if len(said) <= 240 else said[:237] + "..."


def _progress(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """transformers' progress bars as lines of the log."""
    del factory
    return _Progress(*args, **kwargs)


class _Progress:
    """As much of tqdm as is used while loading."""

    def __init__(self, iterable: Any = None, *_: Any, total: float | None = None, desc: str = "", **__: Any) -> None:
        self._iterable = iterable
        self._total = total if total is not None else len(iterable) if hasattr(iterable, "__len__") else 0
        self._desc = desc or "loading"
        self._done = 0.0
        self._told = 0.0

    def update(self, count: float = 1) -> None:
        self._done += count
        if self._total and self._done / self._total >= self._told + PROGRESS_STEP:
            self._told = self._done / self._total
            log.info("%s: %d%%", self._desc, round(100 * self._told))

    def __iter__(self) -> Any:
        for item in self._iterable:
            yield item
            self.update()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None
