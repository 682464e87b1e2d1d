"""What `kuwa up` says, in English and in Traditional Chinese. `kuwa.fleet.screen` fills the texts in."""

from __future__ import annotations

from dataclasses import dataclass

from kuwa.home import Language


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """One field for each thing that is said; the names in braces are filled in by `str.format`."""

    starting: str
    ready: str
    kernel_ready: str
    died: str
    again: str
    given_up: str
    abandoned: str
    last_lines: str
    empty_log: str
    served_title: str
    access_code: str
    executor: str
    state: str
    endpoint: str
    states: dict[str, str]
    page: str
    api: str
    logs: str
    try_it: str
    hello: str
    to_end: str
    ending: str
    ended: str
    kernel_lost: str
    port_taken: str
    by_kernel: str
    port_refused: str
    no_such_model: str
    downloads: str
    no_gguf_engine: str
    no_folder: str


_EN = Texts(
    starting="Starting {names} …",
    ready="{name} is ready ({took_s:.1f} s)",
    kernel_ready="kernel listens on {url} ({took_s:.1f} s)",
    died="{name} ended by itself ({how})",
    again="starting it again in {again_in_s:g} s",
    given_up="not starting it again",
    abandoned="{name} is not started, because {missing} failed",
    last_lines="the last lines of {log}:",
    empty_log="{log} is empty",
    served_title="Served now",
    access_code="access code",
    executor="executor",
    state="state",
    endpoint="endpoint",
    states={
        "waiting": "waiting",
        "starting": "starting",
        "ready": "ready",
        "suspect": "not answering",
        "draining": "ending",
        "ejected": "set aside",
        "gone": "gone",
        "pausing": "restarting",
        "given up": "failed",
    },
    page="What is served: ",
    api="OpenAI base URL: ",
    logs="Logs: ",
    try_it="Try it:",
    hello="Hello! What is Kuwa?",
    to_end="Ctrl-C ends everything.",
    ending="Ending everything; Ctrl-C once more does it by force.",
    ended="Everything has ended.",
    kernel_lost="Without the kernel nothing can be served: ending.",
    port_taken=(
        "Port {port} of 127.0.0.1 is in use{by_whom}. "
        "End the program that holds it, or choose another port: kuwa up --port {other}"
    ),
    by_kernel=" by a Kuwa kernel",
    port_refused="Cannot listen on port {port} of 127.0.0.1: {reason}. Choose another one: kuwa up --port 9000",
    no_such_model="There is no file {path}. Give --model the path of a GGUF file.",
    downloads="A model of the hub that is not here yet is downloaded first; how far it is stands in its log in {logs}.",
    no_gguf_engine="No GGUF file is served: its engine is not installed. Add it: pip install 'kuwa[llamacpp]'",
    no_folder="Cannot write to {path}: {reason}. Choose another folder: KUWA_HOME=/path kuwa up",
)

_ZH_TW = Texts(
    starting="正在啟動 {names} …",
    ready="{name} 已就緒（{took_s:.1f} 秒）",
    kernel_ready="kernel 正在 {url} 提供服務（{took_s:.1f} 秒）",
    died="{name} 自行結束（{how}）",
    again="{again_in_s:g} 秒後重新啟動",
    given_up="不再重新啟動",
    abandoned="{name} 未啟動，因為 {missing} 失敗了",
    last_lines="{log} 的最後幾行：",
    empty_log="{log} 是空的",
    served_title="目前提供的模型",
    access_code="access code",
    executor="executor",
    state="狀態",
    endpoint="端點",
    states={
        "waiting": "等待中",
        "starting": "啟動中",
        "ready": "就緒",
        "suspect": "沒有回應",
        "draining": "結束中",
        "ejected": "暫停使用",
        "gone": "已離線",
        "pausing": "重新啟動中",
        "given up": "失敗",
    },
    page="服務狀態頁：",
    api="OpenAI base URL：",
    logs="記錄檔：",
    try_it="試試看：",
    hello="你好！Kuwa 是什麼？",
    to_end="按 Ctrl-C 結束全部程式。",
    ending="正在結束全部程式；再按一次 Ctrl-C 會強制結束。",
    ended="全部程式都已結束。",
    kernel_lost="沒有 kernel 就無法提供任何服務，即將結束。",
    port_taken=(
        "127.0.0.1 的連接埠 {port} 已被使用{by_whom}。請結束佔用它的程式，或改用其他連接埠：kuwa up --port {other}"
    ),
    by_kernel="（由另一個 Kuwa kernel 使用）",
    port_refused="無法使用 127.0.0.1 的連接埠 {port}：{reason}。請改用其他連接埠：kuwa up --port 9000",
    no_such_model="找不到檔案 {path}。請用 --model 指定一個 GGUF 檔案的路徑。",
    downloads="尚未下載的 Hugging Face 模型會先下載，進度請見 {logs} 裡的記錄檔。",
    no_gguf_engine="無法提供 GGUF 模型，因為尚未安裝推論引擎。安裝指令：pip install 'kuwa[llamacpp]'",
    no_folder="無法寫入 {path}：{reason}。請指定其他資料夾：KUWA_HOME=/path kuwa up",
)


def texts(language: Language) -> Texts:
    return _ZH_TW if language == "zh-TW" else _EN
