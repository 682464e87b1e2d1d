"""What `kuwa chat`, `kuwa ps` and `kuwa doctor` say, in English and in Traditional Chinese. One table: a field for each
thing that is said; the names in braces are filled in by `str.format`."""

from __future__ import annotations

from dataclasses import dataclass

from kuwa.home import Language


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    # All three
    no_kernel: str
    # kuwa chat
    none_served: str
    not_served: str
    which_model: str
    several_models: str
    choose: str
    not_in_list: str
    greeting: str
    hint: str
    waiting: str
    stopped: str
    not_kept: str
    cut_off: str
    figures: str
    bye: str
    nothing_said: str
    not_utf8: str
    cannot_write: str
    unknown_command: str
    system_is: str
    system_none: str
    system_set: str
    system_gone: str
    model_set: str
    models: str
    save_where: str
    saved: str
    save_exists: str
    save_failed: str
    cleared: str
    help: str
    # kuwa ps
    access_code: str
    executor: str
    state: str
    where: str
    slots: str
    waits: str
    load: str
    since: str
    states: dict[str, str]
    tokens_per_s: str
    waiting_there: str
    nothing_runs: str
    # kuwa doctor
    fine: str
    to_do: str
    all_well: str
    things_to_do: str
    python: str
    clash: str
    clash_do: str
    not_utf8_terminal: str
    not_utf8_do: str
    memory: str
    little_memory: str
    little_memory_do: str
    disk: str
    little_disk: str
    little_disk_do: str
    no_folder: str
    no_folder_do: str
    extra: str
    extra_missing: str
    extra_missing_do: str
    extra_old: str
    extra_old_do: str
    engine: str
    engine_broken: str
    engine_broken_do: str
    kernel: str
    kernel_draining: str
    port_free: str
    port_free_do: str
    port_taken: str
    port_taken_do: str
    port_taken_pid: str
    kernel_unreachable: str
    kernel_unreachable_do: str
    served: str
    none_ready: str
    none_ready_do: str
    replica_unwell: str
    replica_unwell_do: str
    answered: str
    tokens: str
    characters: str
    not_answered: str
    not_answered_do: str
    not_asked: str


_EN = Texts(
    no_kernel="No kernel answers at {url}. Start one with `kuwa up`, or give its address with --kernel_url.",
    none_served="The kernel at {url} serves no model yet. Start one, such as: kuwa-executor debug",
    not_served="{model!r} is not served. Served now: {models}.",
    which_model="Which model?",
    several_models="Several models are served; name one of them: {models}.",
    choose="number or access code: ",
    not_in_list="That is none of them.",
    greeting="You are talking to {model}.",
    hint="/help shows the commands · Ctrl-C stops an answer · Ctrl-D ends",
    waiting="waiting for the first word (Ctrl-C gives up)",
    stopped="Stopped.",
    not_kept="What you said is not kept in the conversation; the arrow key brings it back.",
    cut_off="The answer was cut off at its greatest length.",
    figures="{tokens} tokens · {took_s:.1f} s",
    bye="Ctrl-D or /quit ends.",
    nothing_said="Nothing was said: the input is empty.",
    cannot_write="The answer cannot be written: {reason}.",
    not_utf8="The input is not UTF-8 text (byte {position}).",
    unknown_command="There is no command {name}. /help shows all; put a blank before a text that begins with /.",
    system_is="System prompt: {system}",
    system_none="No system prompt is set. /system TEXT sets one.",
    system_set="The system prompt is set; it holds from the next answer on.",
    system_gone="The system prompt is removed.",
    model_set="You are talking to {model} now; what was said so far goes with you.",
    models="Served now (* you are talking to):",
    save_where="Where to? /save FILE.md writes it to read, /save FILE.json as messages.",
    saved="Saved in {path}.",
    save_exists="{path} is there already; choose another name.",
    save_failed="{path} cannot be written: {reason}.",
    cleared="What was said is forgotten; the system prompt stays.",
    help="""\
/system TEXT    set the system prompt; /system shows it, /system - removes it
/model CODE     talk to another model; /model lists them
/save FILE      save the conversation: FILE.json as messages, any other name as Markdown
/clear          forget what was said
/help           this
/quit           end; Ctrl-D does too

Several lines: end a line with \\ to go on in the next one, or put the text between two marks \"\"\".
Text that is pasted may have several lines as it is. A text that begins with / goes behind a blank.
Ctrl-C stops an answer; what has come stays in the conversation. The arrow keys bring back what you said before.""",
    access_code="access code",
    executor="executor",
    state="state",
    where="where",
    slots="slots",
    waits="waiting",
    load="load",
    since="since",
    states={
        "starting": "starting",
        "ready": "ready",
        "suspect": "not answering",
        "draining": "ending",
        "ejected": "set aside",
        "gone": "gone",
    },
    tokens_per_s="{rate:.0f} tokens/s",
    waiting_there="{count} waiting there",
    nothing_runs="The kernel at {url} is there; no executor is registered. Start one, such as: kuwa-executor debug",
    fine="ok",
    to_do="TO DO",
    all_well="Nothing needs doing.",
    things_to_do="Needs doing: {count}.",
    python="Kuwa {version}, Python {python}, {platform}",
    clash="The old distribution kuwa-executor is installed here ({path}); it and Kuwa overwrite each other.",
    clash_do="Run these, then start again:\n{commands}",
    not_utf8_terminal="The terminal's encoding is {encoding}, not UTF-8; Chinese and emoji cannot be shown.",
    not_utf8_do="Choose a UTF-8 locale: export LANG=C.UTF-8",
    memory="Memory: {free} GiB free of {total}",
    little_memory="Only {free} GiB of {total} GiB memory are free; a model that does not fit is ended by the system.",
    little_memory_do="End other programs, or choose a smaller model or a stronger quantisation (Q4_K_M).",
    disk="Disk: {free} GiB free in {path}",
    little_disk="Only {free} GiB are free in {path}, where models are kept.",
    little_disk_do="Make room there, or choose another folder: export KUWA_HOME=/path",
    no_folder="{path} cannot be written.",
    no_folder_do="Make it yours (chown), or choose another folder: export KUWA_HOME=/path",
    extra="Extra {extra}: installed ({found})",
    extra_missing="Extra {extra} is not installed (missing: {missing}); only needed for the executor of that name.",
    extra_missing_do="pip install 'kuwa[{extra}]'",
    extra_old="Extra {extra}: {missing} is installed in a version that Kuwa does not take.",
    extra_old_do="pip install --upgrade 'kuwa[{extra}]'",
    engine="The engine for GGUF files loads.",
    engine_broken="The engine for GGUF files cannot be loaded: {reason}",
    engine_broken_do="Install it anew: pip install --force-reinstall --no-deps xllamacpp=={version}",
    kernel="Kernel {version} answers at {url}",
    kernel_draining="The kernel at {url} is stopping and takes no new requests.",
    port_free="No kernel runs: port {port} is free.",
    port_free_do="Start it with everything it needs: kuwa up{option}",
    port_taken="Port {port} is held by another program{by_whom}, not by a kernel.",
    port_taken_do="End that program, or choose another port: kuwa up --port {other}",
    port_taken_pid=" ({name}, process {pid})",
    kernel_unreachable="No kernel can be used at {url}: {reason}",
    kernel_unreachable_do="Start it there, or give another address: --kernel_url, or the variable KUWA_KERNEL_URL.",
    served="Ready: {models}",
    none_ready="No model is ready.",
    none_ready_do="Start one, such as: kuwa-executor debug{option}",
    replica_unwell="{code} at {where} is {state}{note}.",
    replica_unwell_do="Look at its own output or log (those of `kuwa up` are in {logs}), and start it again.",
    answered="{model} answers: {length}, the first after {first_s:.2f} s, all after {took_s:.1f} s",
    tokens="{count} tokens",
    characters="{count} characters",
    not_answered="{model} was asked and did not answer: {reason}",
    not_answered_do="Look at its own output or log (those of `kuwa up` are in {logs}), and start it again.",
    not_asked="Nothing was asked: neither welcome nor debug is ready, and the others may cost money.",
)

_ZH_TW = Texts(
    no_kernel="{url} 沒有 kernel 在執行。請以 `kuwa up` 啟動，或用 --kernel_url 指定它的位址。",
    none_served="{url} 的 kernel 還沒有提供任何模型。可以啟動一個，例如：kuwa-executor debug",
    not_served="目前沒有提供 {model!r}。目前提供的有：{models}。",
    which_model="要使用哪個模型？",
    several_models="目前提供多個模型，請指定其中之一：{models}。",
    choose="編號或 access code：",
    not_in_list="清單中沒有這個模型。",
    greeting="正在與 {model} 對話。",
    hint="/help 顯示指令 · Ctrl-C 停止回答 · Ctrl-D 結束",
    waiting="等待第一個字（Ctrl-C 放棄）",
    stopped="已停止。",
    not_kept="這句話沒有留在對話中；按向上鍵可以取回。",
    cut_off="回答已達長度上限而被截斷。",
    figures="{tokens} 個 token · {took_s:.1f} 秒",
    bye="按 Ctrl-D 或輸入 /quit 結束。",
    nothing_said="輸入是空的，沒有送出任何內容。",
    cannot_write="無法寫出回答：{reason}。",
    not_utf8="輸入不是 UTF-8 文字（第 {position} 位元組）。",
    unknown_command="沒有 {name} 這個指令。/help 會列出所有指令；要送出以 / 開頭的文字，請在前面加一個空格。",
    system_is="系統提示：{system}",
    system_none="沒有設定系統提示。用 /system 文字 來設定。",
    system_set="系統提示已設定，從下一個回答開始生效。",
    system_gone="系統提示已移除。",
    model_set="現在與 {model} 對話；先前的內容會一併帶過去。",
    models="目前提供的模型（* 為對話中的模型）：",
    save_where="要存到哪裡？/save 檔名.md 存成易讀的文字，/save 檔名.json 存成訊息。",
    saved="已存到 {path}。",
    save_exists="{path} 已經存在，請換一個檔名。",
    save_failed="無法寫入 {path}：{reason}。",
    cleared="先前的對話已清除；系統提示保留。",
    help="""\
/system 文字    設定系統提示；/system 顯示，/system - 移除
/model CODE     換一個模型對話；/model 列出全部
/save 檔名      儲存對話：檔名.json 存成訊息，其他檔名存成 Markdown
/clear          清除先前的對話
/help           顯示本說明
/quit           結束；Ctrl-D 也可以

輸入多行：在行尾加上 \\ 即可換行繼續，或把文字放在兩個 \"\"\" 之間。
貼上的文字可以直接包含多行。要送出以 / 開頭的文字，請在前面加一個空格。
Ctrl-C 停止回答，已收到的部分會留在對話中。向上鍵可以取回之前輸入的內容。""",
    access_code="access code",
    executor="executor",
    state="狀態",
    where="位址",
    slots="名額",
    waits="等待",
    load="負載",
    since="持續",
    states={
        "starting": "啟動中",
        "ready": "就緒",
        "suspect": "沒有回應",
        "draining": "結束中",
        "ejected": "暫停使用",
        "gone": "已離線",
    },
    tokens_per_s="每秒 {rate:.0f} 個 token",
    waiting_there="另有 {count} 個等待中",
    nothing_runs="{url} 的 kernel 正在執行，但沒有任何 executor 註冊。可以啟動一個，例如：kuwa-executor debug",
    fine="正常",
    to_do="待處理",
    all_well="一切正常。",
    things_to_do="需要處理：{count} 項。",
    python="Kuwa {version}、Python {python}、{platform}",
    clash="這裡裝有舊的套件 kuwa-executor（{path}），它與 Kuwa 互相覆蓋了檔案。",
    clash_do="請執行以下指令，然後重新啟動：\n{commands}",
    not_utf8_terminal="終端機的編碼是 {encoding} 而不是 UTF-8，無法顯示中文與表情符號。",
    not_utf8_do="請改用 UTF-8 語系：export LANG=zh_TW.UTF-8",
    memory="記憶體：可用 {free} GiB，共 {total} GiB",
    little_memory="記憶體 {total} GiB 中只剩 {free} GiB；放不下的模型會被系統強制結束。",
    little_memory_do="請結束其他程式，或改用較小的模型或較精簡的量化版本（Q4_K_M）。",
    disk="磁碟：{path} 可用 {free} GiB",
    little_disk="存放模型的 {path} 只剩 {free} GiB。",
    little_disk_do="請清出空間，或改用其他資料夾：export KUWA_HOME=/path",
    no_folder="無法寫入 {path}。",
    no_folder_do="請修正它的權限（chown），或改用其他資料夾：export KUWA_HOME=/path",
    extra="選用套件 {extra}：已安裝（{found}）",
    extra_missing="選用套件 {extra} 尚未安裝（缺少：{missing}）；只有同名的 executor 需要它。",
    extra_missing_do="pip install 'kuwa[{extra}]'",
    extra_old="選用套件 {extra}：已安裝的 {missing} 版本不符 Kuwa 的需求。",
    extra_old_do="pip install --upgrade 'kuwa[{extra}]'",
    engine="GGUF 推論引擎可以載入。",
    engine_broken="GGUF 推論引擎無法載入：{reason}",
    engine_broken_do="請重新安裝：pip install --force-reinstall --no-deps xllamacpp=={version}",
    kernel="kernel {version} 在 {url} 正常回應",
    kernel_draining="{url} 的 kernel 正在結束，不接受新的請求。",
    port_free="沒有 kernel 在執行；連接埠 {port} 可以使用。",
    port_free_do="啟動 kernel 與所需的一切：kuwa up{option}",
    port_taken="連接埠 {port} 被其他程式{by_whom}佔用，不是 kernel。",
    port_taken_do="請結束該程式，或改用其他連接埠：kuwa up --port {other}",
    port_taken_pid="（{name}，行程 {pid}）",
    kernel_unreachable="{url} 的 kernel 無法使用：{reason}",
    kernel_unreachable_do="請在那裡啟動它，或指定正確的位址：--kernel_url，或環境變數 KUWA_KERNEL_URL。",
    served="就緒：{models}",
    none_ready="沒有任何模型就緒。",
    none_ready_do="請啟動一個，例如：kuwa-executor debug{option}",
    replica_unwell="{where} 的 {code} {state}{note}。",
    replica_unwell_do="請查看它的輸出或記錄檔（`kuwa up` 的記錄檔在 {logs}），然後重新啟動它。",
    answered="{model} 有回答：{length}，第一個字 {first_s:.2f} 秒，全部 {took_s:.1f} 秒",
    tokens="{count} 個 token",
    characters="{count} 個字元",
    not_answered="已詢問 {model}，但沒有得到回答：{reason}",
    not_answered_do="請查看它的輸出或記錄檔（`kuwa up` 的記錄檔在 {logs}），然後重新啟動它。",
    not_asked="沒有發問：welcome 與 debug 都未就緒，而其他模型可能會產生費用。",
)


def texts(language: Language) -> Texts:
    return _ZH_TW if language == "zh-TW" else _EN
