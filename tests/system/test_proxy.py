"""A provider at https that only a proxy reaches: `--proxy`, `HTTPS_PROXY`, `NO_PROXY`, and proxies that refuse."""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from calls import chat, chat_text, stream_chat
from processes import REPOSITORY, Executor, Stage, until
from providers import start_provider

KEY = "sk-canary-9d41"
PASSWORD = "canary-0f3c"
CHINESE = "請說一個關於海的故事🌊"
PROVIDER = "https://provider.test/v1"


class Institution:
    """A network in which the provider is reached through its proxy alone."""

    def __init__(self, stage: Stage, *flags: str) -> None:
        self._stage = stage
        authority = trustme.CA()
        self.authority = stage.folder / "authority.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        certificate = stage.folder / "certificate.pem"
        authority.issue_cert("provider.test").private_key_and_cert_chain_pem.write_to_path(str(certificate))
        port = str(urlsplit(start_provider(stage, "openai_server").base_url).port)
        program = str(REPOSITORY / "tests" / "fakes" / "proxy.py")
        argv = [sys.executable, program, "--target", port, "--certificate", str(certificate), *flags]
        self.proxy = stage.process(argv, name="proxy")
        self.port = int(self.proxy.wait_for(lambda: self.proxy.log.partition("\n")[0], "it said its port"))

    def executor(self, *flags: str, name: str = "chatgpt", authority: Path | None = None, **env: str) -> Executor:
        env |= {"SSL_CERT_FILE": str(authority or self.authority)}
        common = ("--base_url", PROVIDER, "--api_key", KEY, "--timeout", "5")
        return self._stage.executor(name, *common, *flags, kernel=None, **env)


@pytest.fixture
def institution(stage: Stage) -> Institution:
    return Institution(stage)


def test_chats_pass_through_the_tunnel_which_is_kept(institution: Institution) -> None:
    executor = institution.executor("--proxy", f"http://127.0.0.1:{institution.port}")
    for _ in range(3):
        assert chat_text(executor.url, "chatgpt", CHINESE) == CHINESE
    with stream_chat(executor.url, "chatgpt", CHINESE) as stream:
        assert stream.text() == CHINESE
    assert institution.proxy.log.splitlines()[1:] == ["CONNECT provider.test:443 HTTP/1.1"]
    assert KEY not in institution.proxy.log


def test_a_client_that_goes_away_ends_the_work_behind_the_tunnel(institution: Institution) -> None:
    executor = institution.executor("--proxy", f"127.0.0.1:{institution.port}")
    pieces = {"pieces": ["x "] * 1000, "delay_s": 0.02}
    with stream_chat(executor.url, "chatgpt", "count", fake=pieces) as stream:
        stream.first_text()
    until(lambda: 'vllm:num_requests_running{model_name="chatgpt"} 0.0' in executor.get("/metrics").text, "it ended")


def test_the_proxys_password_comes_from_the_environment_and_is_shown_nowhere(stage: Stage) -> None:
    institution = Institution(stage, "--user", f"me:{PASSWORD}")
    proxy = f"127.0.0.1:{institution.port}"
    executor = institution.executor(HTTPS_PROXY=f"http://me:{PASSWORD}@{proxy}")
    assert chat_text(executor.url, "chatgpt", "hi") == "hi"
    assert PASSWORD not in executor.process.log
    refused = chat(institution.executor(HTTPS_PROXY=f"http://me:wrong@{proxy}").url, "chatgpt", "hi")
    assert (refused.status, refused.error["code"]) == (502, "bad_upstream")
    assert "407" in refused.error["message"]


def test_no_proxy_and_a_proxy_that_is_not_there_are_errors_that_name_the_way(institution: Institution) -> None:
    proxy = f"http://127.0.0.1:{institution.port}"
    direct = chat(institution.executor(HTTPS_PROXY=proxy, NO_PROXY="provider.test").url, "chatgpt", "hi")
    assert (direct.status, direct.error["code"]) == (502, "bad_upstream")
    assert len(institution.proxy.log.splitlines()) == 1
    missing = chat(institution.executor("--proxy", "http://127.0.0.1:1").url, "chatgpt", "hi")
    assert "the proxy 127.0.0.1:1" in missing.error["message"]


def test_a_certificate_is_checked_behind_the_tunnel_too(institution: Institution, stage: Stage) -> None:
    other = stage.folder / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    executor = institution.executor("--proxy", f"http://127.0.0.1:{institution.port}", authority=other)
    refused = chat(executor.url, "chatgpt", "hi")
    assert (refused.status, refused.error["code"]) == (502, "bad_upstream")
    assert "certificate" in refused.error["message"].lower()
