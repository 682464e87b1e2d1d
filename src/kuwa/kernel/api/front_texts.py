"""What the front page says, in English and in Traditional Chinese, and which of them a browser asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """One field for each thing that is said; texts are plain and become HTML where they are used."""

    language: str
    tagline: str
    version: str
    served: str
    access_code: str
    executor: str
    state: str
    executors: str
    context: str
    tokens: str
    states: dict[str, str]
    none: str
    none_ready: str
    ask: str
    ask_by_curl: str
    ask_in_terminal: str
    ask_by_library: str
    hello: str
    add: str
    add_gguf: str
    add_server: str
    add_own: str
    add_list: str
    more: str
    link_status: str
    link_models: str
    link_metrics: str
    link_health: str


EN = Texts(
    language="en",
    tagline="One front door for every language model you have.",
    version="Version {version}",
    served="Models served here",
    access_code="Access code",
    executor="Executor",
    state="State",
    executors="Executors",
    context="Context",
    tokens="{count:,} tokens",
    states={
        "starting": "starting",
        "ready": "ready",
        "suspect": "not answering",
        "draining": "ending",
        "ejected": "set aside",
    },
    none="No model is served yet. Start one in a terminal, then load this page again:",
    none_ready="As soon as a model is ready, a command to ask it stands here.",
    ask="Ask one",
    ask_by_curl="From a shell",
    ask_in_terminal="As a conversation in the terminal",
    ask_by_library="Any OpenAI client or library: set its base URL to this. Its API key may be anything.",
    hello="Hello!",
    add="Add a model",
    add_gguf="A GGUF file, run on this machine",
    add_server="Another OpenAI-compatible server, such as vLLM",
    add_own="Your own Python file",
    add_list="All kinds of executors",
    more="More",
    link_status="Executors and their load",
    link_models="Models as JSON",
    link_metrics="Metrics",
    link_health="Health",
)

ZH_TW = Texts(
    language="zh-TW",
    tagline="您所有語言模型的共同入口。",
    version="版本 {version}",
    served="目前提供的模型",
    access_code="Access code",
    executor="Executor",
    state="狀態",
    executors="Executor 數",
    context="上下文長度",
    tokens="{count:,} 個 token",
    states={
        "starting": "啟動中",
        "ready": "就緒",
        "suspect": "沒有回應",
        "draining": "結束中",
        "ejected": "暫停使用",
    },
    none="還沒有提供任何模型。請在終端機啟動一個，再重新載入本頁：",
    none_ready="模型就緒之後，這裡會顯示可以直接使用的提問指令。",
    ask="開始提問",
    ask_by_curl="在命令列",
    ask_in_terminal="在終端機對話",
    ask_by_library="任何 OpenAI 用戶端或函式庫：把 base URL 設為以下位址，API key 可填任意文字。",
    hello="你好！",
    add="加入模型",
    add_gguf="在這台電腦上執行的 GGUF 檔",
    add_server="其他 OpenAI 相容的伺服器，例如 vLLM",
    add_own="您自己的 Python 檔",
    add_list="所有種類的 executor",
    more="更多",
    link_status="Executor 與負載",
    link_models="模型清單（JSON）",
    link_metrics="監控指標",
    link_health="健康狀態",
)


def texts(accept_language: str) -> Texts:
    """Those of the language that `Accept-Language` puts first, of the two there are; English where it names neither."""
    best, found = 0.0, EN
    for part in accept_language.split(","):
        tag, _, rest = part.strip().partition(";")
        quality = _quality(rest)
        language = {"zh": ZH_TW, "en": EN}.get(tag.strip().lower().split("-")[0])
        if language is not None and quality > best:
            best, found = quality, language
    return found


def _quality(parameters: str) -> float:
    name, _, value = parameters.strip().partition("=")
    if not name:
        return 1.0
    try:
        return float(value) if name.strip() == "q" else 1.0
    except ValueError:
        return 0.0
