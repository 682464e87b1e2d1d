"""Chat templates by name, for `--override_chat_template chatml` and models whose file brings none.

Written in Jinja after the published prompt formats. The token that begins a text is left out: llama.cpp puts it
there as the model's file says. Names are resolved here and not by llama.cpp, which takes an unknown name for the
template itself and so answers a prompt that consists of the name.
"""

from __future__ import annotations

_TURNS = "{% for message in messages %}"
_SYSTEM_FIRST = (
    "{% set system = namespace(text='') %}"
    "{% if messages and messages[0].role == 'system' %}"
    "{% set system.text = messages[0].content %}{% set messages = messages[1:] %}{% endif %}"
)

TEMPLATES = {
    "chatml": _TURNS
    + "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "llama2": _SYSTEM_FIRST
    + _TURNS
    + "{% if message.role == 'user' %}[INST] "
    + "{% if loop.first and system.text %}<<SYS>>\n{{ system.text }}\n<</SYS>>\n\n{% endif %}"
    + "{{ message.content }} [/INST]{% else %} {{ message.content }} </s><s>{% endif %}{% endfor %}",
    "llama3": _TURNS
    + "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content }}<|eot_id|>{% endfor %}"
    + "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    "gemma": _SYSTEM_FIRST
    + _TURNS
    + "<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    + "{% if loop.first and system.text %}{{ system.text }}\n\n{% endif %}"
    + "{{ message.content }}<end_of_turn>\n{% endfor %}"
    + "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "vicuna": _SYSTEM_FIRST
    + "{% if system.text %}{{ system.text }}\n\n{% endif %}"
    + _TURNS
    + "{% if message.role == 'user' %}USER: {{ message.content }}\n"
    + "{% else %}ASSISTANT: {{ message.content }}</s>\n{% endif %}{% endfor %}"
    + "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    "alpaca": _SYSTEM_FIRST
    + "{% if system.text %}{{ system.text }}\n\n{% endif %}"
    + _TURNS
    + "{% if message.role == 'user' %}### Instruction:\n{% else %}### Response:\n{% endif %}"
    + "{{ message.content }}\n\n{% endfor %}{% if add_generation_prompt %}### Response:\n{% endif %}",
}
