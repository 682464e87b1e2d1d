"""`kuwa-executor huggingface` on a folder, as it is started: its options in all their ways, a Modelfile's template."""

from __future__ import annotations

import json
from typing import Any

import pytest

from calls import Answer, chat, old_chat, post_json
from processes import Executor, Kernel, Stage
from tiny_models import make_folder

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"


@pytest.fixture(scope="module")
def executor(shared_stage: Stage, shared_kernel: Kernel) -> Executor:
    folder = make_folder("tiny-llama", shared_stage.folder / "tiny-llama")
    config = shared_stage.folder / "generation.yaml"
    config.write_text("max_new_tokens: 5\nrepetition_penalty: 1.1\nstop: [never]\n")
    return shared_stage.executor(
        *("huggingface", "--model_path", str(folder), "-c", str(config), "--limit", "200", "--trim_history"),
        *("--generation_kwargs", "max_new_tokens=6", "--generation_kwargs", "top_k=3", "--presence_penalty", "0.5"),
        kernel=shared_kernel,
        access_code="tiny",
    )


def ask(executor: Executor, text: str, template: str = TEMPLATE, **fields: Any) -> Answer:
    modelfile = json.dumps([{"name": "template", "args": template}, {"name": "system", "args": "Be brief."}])
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": text}],
        "kuwa": {"form": {"modelfile": modelfile}},
    }
    return post_json(executor.url + "/v1/chat/completions", {**body, **fields})


def test_options_come_from_the_file_the_pairs_the_line_and_the_request_in_this_order(executor: Executor) -> None:
    assert chat(executor.url, "tiny", "hi").json()["usage"]["completion_tokens"] == 6
    assert chat(executor.url, "tiny", "hi", max_tokens=2).json()["usage"]["completion_tokens"] == 2


def test_loading_says_what_it_does_and_which_engine_was_chosen(executor: Executor) -> None:
    log = executor.process.log
    assert "(LlamaForCausalLM)" in log
    assert "Loading weights: " in log
    assert "engine slot: 16 requests at once" in log


def test_a_template_of_the_modelfile_makes_the_prompt(executor: Executor) -> None:
    answer = ask(executor, "the sea")
    assert answer.status == 200, answer
    prompt = "[system] Be brief.\n[user] the sea\n[assistant]"
    plain = post_json(executor.url + "/v1/completions", {"model": "tiny", "prompt": prompt}).json()
    assert answer.json()["choices"][0]["message"]["content"] == plain["choices"][0]["text"]
    assert answer.json()["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]


def test_what_users_write_is_no_control_token_in_such_a_template_either(executor: Executor) -> None:
    template = "<|im_start|>" + TEMPLATE
    as_token = ask(executor, "x", template.replace("{{ m.content }}", "<|im_end|>")).json()["usage"]["prompt_tokens"]
    as_text = ask(executor, "<|im_end|>", template).json()["usage"]["prompt_tokens"]
    assert as_text > as_token + 2 * 2


def test_old_turns_are_left_out_before_such_a_template(shared_kernel: Kernel, executor: Executor) -> None:
    turns = [{"msg": "word " * 60, "isbot": False}, {"msg": "yes", "isbot": True}, {"msg": "and now", "isbot": False}]
    modelfile = json.dumps([{"name": "template", "args": TEMPLATE}])
    with old_chat(shared_kernel.url, "tiny", "", input=json.dumps(turns), modelfile=modelfile) as stream:
        text = stream.read().decode()
    plain = {"model": "tiny", "prompt": "[user] and now\n[assistant]"}
    assert text == post_json(executor.url + "/v1/completions", plain).json()["choices"][0]["text"]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
        ("{% for i in range(10**9) %}{{ i }}{% endfor %}", "chat template"),
        ("{{ raise_exception('no') }}", "no"),
        ("{{", "TemplateSyntaxError"),
    ],
)
def test_a_template_that_fails_is_refused_and_the_next_one_is_served(
    executor: Executor, template: str, reason: str
) -> None:
    refused = ask(executor, "hi", template)
    assert (refused.status, refused.error["param"]) == (400, "modelfile")
    assert reason in refused.error["message"]
    assert ask(executor, "hi").status == 200


def test_such_a_template_goes_with_text_alone(executor: Executor) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    refused = ask(executor, "hi", tools=[tool])
    assert (refused.status, refused.error["code"]) == (400, "unsupported")
