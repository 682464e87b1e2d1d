"""Makes transformers models of random weights for tests and benchmarks, in seconds and offline:

    python tests/tiny_models.py OUT tiny-llama medium-llama

Each folder is complete: configuration, weights, a byte-level tokenizer trained on the spot, a chat template. What
they say is nonsense, but every path to it is real, and the same seed makes the same model.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TAGS = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
CHAT_TEMPLATE = """\
{%- if tools %}<|im_start|>tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{{ call.function | tojson }}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
SENTENCES = (
    "The harbour lies still before the morning wind.",
    "A ship with seven sails went out and came back with five.",
    "def area(width, height):\n    return width * height\n",
    "燈塔的光照在海面上，漁船慢慢地回家。",
    "今天下午會下雨，記得帶傘。",
    "naïve café, coöperate, façade — “so it goes” …",
    "🌊 waves 🚢 ships 👩‍🚀 and 🧭",
    '{"name": "tide", "arguments": {"port": "基隆"}}',
    "3 + 4 = 7; 128 / 4 = 32; 0.5 * 0.5 = 0.25",
)
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    # Wide: with narrow weights greedy answers repeat one token, and to compare them would prove nothing.
    "initializer_range": 0.2,
}


def _corpus() -> Iterator[str]:
    draw = random.Random(7)  # noqa: S311 - the same words each time are what is wanted
    words = " ".join(SENTENCES).split()
    for _ in range(2000):
        yield draw.choice(SENTENCES) + " " + " ".join(draw.choices(words, k=draw.randint(3, 20)))


def make_tokenizer(length: int) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(_corpus(), trainer)
    made.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=length
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _llama(common: dict[str, Any]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**common))


def _qwen3(common: dict[str, Any]) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**common))


def _gemma3(common: dict[str, Any]) -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    kinds = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**common, sliding_window=24, layer_types=kinds, query_pre_attn_scalar=16))


def _gemma2(common: dict[str, Any]) -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(Gemma2Config(**common, sliding_window=24, query_pre_attn_scalar=16))


def _mistral(common: dict[str, Any]) -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**common, sliding_window=32))


def _gpt2(common: dict[str, Any]) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    ids = {name: value for name, value in common.items() if name.endswith("token_id")}
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=common["vocab_size"],
            n_positions=common["max_position_embeddings"],
            n_embd=64,
            n_layer=2,
            n_head=4,
            initializer_range=0.2,
            **ids,
        )
    )


def _gpt_oss(common: dict[str, Any]) -> Any:
    from transformers import GptOssConfig, GptOssForCausalLM

    return GptOssForCausalLM(GptOssConfig(**common, num_local_experts=4, num_experts_per_tok=2, sliding_window=16))


def _moe(common: dict[str, Any]) -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**common, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=64))


def _hybrid(common: dict[str, Any]) -> Any:
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    sizes = {
        **common,
        "num_hidden_layers": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
    }
    return Qwen3NextForCausalLM(Qwen3NextConfig(**sizes))


def _mamba(common: dict[str, Any]) -> Any:
    from transformers import MambaConfig, MambaForCausalLM

    ids = {name: value for name, value in common.items() if name.endswith("token_id")}
    return MambaForCausalLM(
        MambaConfig(
            vocab_size=common["vocab_size"],
            hidden_size=64,
            num_hidden_layers=2,
            state_size=8,
            initializer_range=0.2,
            **ids,
        )
    )


def _latent(common: dict[str, Any]) -> Any:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    sizes = {name: value for name, value in common.items() if name != "head_dim"}
    sizes |= {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 32,
    }
    return DeepseekV3ForCausalLM(DeepseekV3Config(**sizes))


def _alibi(common: dict[str, Any]) -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    ids = {name: value for name, value in common.items() if name.endswith("token_id")}
    return BloomForCausalLM(
        BloomConfig(vocab_size=common["vocab_size"], hidden_size=64, n_layer=2, n_head=4, initializer_range=0.2, **ids)
    )


IMAGE = "<image>"
PICTURE_TEMPLATE = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}
{%- else %}{% for part in message.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}
{%- endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
PICTURE_SIDE, PATCH = 28, 14


def _llava(common: dict[str, Any]) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    seen = CLIPVisionConfig(image_size=PICTURE_SIDE, patch_size=PATCH, projection_dim=32, **sizes)
    ids = {name: value for name, value in common.items() if name.endswith("token_id")}
    config = LlavaConfig(
        vision_config=seen, text_config=LlamaConfig(**common), image_token_index=common["vocab_size"] - 1, **ids
    )
    model = LlavaForConditionalGeneration(config)
    # As drawn, what the eyes say would not be heard beside the words.
    for weights in (*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()):
        if weights.dim() > 1:
            weights.data.normal_(std=0.3)
    return model


def _medium(common: dict[str, Any]) -> Any:
    """About 125 million parameters, for timings."""
    sizes = {
        "vocab_size": 32000,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "max_position_embeddings": 2048,
        "initializer_range": 0.05,
    }
    return _llama({**common, **sizes})


MODELS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "tiny-llama": _llama,
    "tiny-qwen3": _qwen3,
    "tiny-gemma3": _gemma3,
    "tiny-gemma2": _gemma2,
    "tiny-mistral-swa": _mistral,
    "tiny-gpt2": _gpt2,
    "tiny-gpt-oss": _gpt_oss,
    "tiny-moe": _moe,
    "tiny-hybrid": _hybrid,
    "tiny-mamba": _mamba,
    "tiny-latent": _latent,
    "tiny-alibi": _alibi,
    "tiny-llava": _llava,
    "medium-llama": _medium,
}


def make_model(name: str, tokenizer: Any | None = None) -> Any:
    """The model alone, in 32 bits and evaluation mode."""
    import torch

    tokenizer = tokenizer or make_tokenizer(SIZES["max_position_embeddings"])
    torch.manual_seed(0)
    common = {
        **SIZES,
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return MODELS[name](common).eval()


def make_folder(name: str, folder: Path) -> Path:
    """The model with its tokenizer as a folder that `--model_path` takes."""
    tokenizer = make_tokenizer(SIZES["max_position_embeddings"])
    processor = _processor(tokenizer) if name == "tiny-llava" else None
    make_model(name, tokenizer).save_pretrained(folder)
    (processor or tokenizer).save_pretrained(folder)
    return folder


def make_cross_encoder(folder: Path) -> Path:
    """A model that scores a text by another."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = make_tokenizer(128)
    tokenizer.chat_template = None
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, initializer_range=0.2, **sizes)
    config.num_labels = 1
    BertForSequenceClassification(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _processor(tokenizer: Any) -> Any:
    """What turns pictures into numbers and puts as many image tokens into the text as they have patches."""
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    tokenizer.chat_template = PICTURE_TEMPLATE
    square = {"height": PICTURE_SIDE, "width": PICTURE_SIDE}
    pictures = CLIPImageProcessorPil(size={"shortest_edge": PICTURE_SIDE}, crop_size=square)
    return LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token=IMAGE,
        chat_template=PICTURE_TEMPLATE,
        num_additional_image_tokens=1,
    )


if __name__ == "__main__":
    for wanted in sys.argv[2:]:
        sys.stdout.write(f"{make_folder(wanted, Path(sys.argv[1]) / wanted)}\n")
