"""`kuwa chat` in a pipe and at a terminal."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from processes import REPOSITORY, Kernel, Stage, environment, until
from terminal import CTRL_C, CTRL_D, UP, Terminal

TALKER = str(REPOSITORY / "tests" / "fakes" / "talker.py")
CHAT = [sys.executable, "-m", "kuwa.cli", "chat"]
PROMPT = "› "
SLOT_FREE_S = 0.5


@pytest.fixture(scope="module")
def kernel(shared_stage: Stage, shared_kernel: Kernel) -> Kernel:
    shared_stage.executor("debug", "--delay", "0", kernel=shared_kernel, access_code="debug")
    shared_stage.executor(TALKER, "--concurrency", "1", kernel=shared_kernel, access_code="talker")
    return shared_kernel


def pipe(kernel_url: str, *arguments: str, said: str | bytes, **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*CHAT, *arguments, "--kernel_url", kernel_url],
        input=said.encode() if isinstance(said, str) else said,
        env=environment(**env),
        capture_output=True,
        timeout=60,
        check=False,
    )


def complaint(done: subprocess.CompletedProcess[bytes], code: int) -> str:
    """The one line that a failure is told in."""
    assert (done.returncode, done.stdout) == (code, b""), done
    [line] = done.stderr.decode().splitlines()
    assert line.startswith("kuwa: ")
    return line


class TestInAPipe:
    @pytest.mark.parametrize("text", ["hi", "兩行\n中文 🎉", "  blanks  ", "/help", "a\tb\\"])
    def test_the_output_is_exactly_the_answer(self, kernel: Kernel, text: str) -> None:
        done = pipe(kernel.url, "debug", said=text + "\n")
        assert (done.returncode, done.stdout.decode(), done.stderr) == (0, text, b"")

    def test_the_address_is_taken_from_the_environment_too(self, kernel: Kernel) -> None:
        env = environment(KUWA_KERNEL_URL=kernel.url + "/v1/")
        done = subprocess.run([*CHAT, "debug"], input=b"hi", env=env, capture_output=True, timeout=60, check=True)
        assert done.stdout == b"hi"

    def test_a_system_prompt_is_sent(self, kernel: Kernel) -> None:
        done = pipe(kernel.url, "talker", "--system", "Be brief.", said="messages")
        assert json.loads(done.stdout)[0] == {"role": "system", "content": "Be brief."}

    def test_what_the_model_thinks_is_not_part_of_the_answer(self, kernel: Kernel) -> None:
        assert pipe(kernel.url, "talker", said="think").stdout == b"the answer"

    def test_bytes_are_passed_on_as_they_are(self, kernel: Kernel) -> None:
        assert b"\x1b]0;owned\x07" in pipe(kernel.url, "talker", said="escapes").stdout

    def test_without_a_kernel_one_line_says_what_to_do(self) -> None:
        line = complaint(pipe("http://127.0.0.1:9", "debug", said="hi"), 1)
        assert "No kernel answers at http://127.0.0.1:9" in line
        assert "kuwa up" in line

    def test_a_model_that_is_not_served_is_named_with_those_that_are(self, kernel: Kernel) -> None:
        assert complaint(pipe(kernel.url, "debgu", said="hi"), 2) == (
            "kuwa: 'debgu' is not served. Served now: debug, talker."
        )

    def test_several_models_and_no_name_are_a_question(self, kernel: Kernel) -> None:
        assert "debug, talker" in complaint(pipe(kernel.url, said="hi"), 2)

    def test_nothing_said_is_nothing_asked(self, kernel: Kernel) -> None:
        assert "empty" in complaint(pipe(kernel.url, "debug", said=" \n"), 2)

    def test_what_is_no_text_is_refused(self, kernel: Kernel) -> None:
        assert "byte 1" in complaint(pipe(kernel.url, "debug", said=b"a\xff\xfe"), 2)

    def test_an_address_that_is_none_is_refused(self) -> None:
        done = pipe("localhost:9000", "debug", said="hi")
        assert done.returncode == 2
        assert "is not a valid address (for example http://127.0.0.1:9000)" in done.stderr.decode()

    def test_an_answer_that_breaks_off_is_a_failure(self, kernel: Kernel) -> None:
        done = pipe(kernel.url, "talker", said="fail")
        assert done.returncode == 1
        assert done.stdout == b"half of it"
        assert len(done.stderr.decode().splitlines()) == 1

    def test_a_reader_that_goes_away_frees_the_slot(self, kernel: Kernel) -> None:
        command = f"printf slow | {' '.join(CHAT)} talker --kernel_url {kernel.url} | head -c 5"
        done = subprocess.run(["sh", "-c", command], env=environment(), capture_output=True, timeout=60, check=False)
        assert (done.stdout, done.stderr) == (b"word0", b"")
        until(lambda: kernel.idle("talker"), "the slot was free")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
    def test_a_full_disk_is_told_in_one_line(self, kernel: Kernel) -> None:
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                [*CHAT, "debug", "--kernel_url", kernel.url],
                input=b"hi",
                stdout=full,
                stderr=subprocess.PIPE,
                env=environment(),
                timeout=60,
                check=False,
            )
        assert (done.returncode, done.stderr) == (1, b"kuwa: The answer cannot be written: No space left on device.\n")

    def test_the_only_model_needs_no_name_and_none_at_all_is_said(self, stage: Stage) -> None:
        lonely = stage.kernel()
        assert "no model" in complaint(pipe(lonely.url, said="hi"), 2)
        stage.executor("debug", "--delay", "0", kernel=lonely, access_code="single")
        assert pipe(lonely.url, said="hi").stdout == b"hi"

    def test_in_taiwan_it_speaks_traditional_chinese(self) -> None:
        env = {"LC_ALL": "zh_TW.UTF-8", "PYTHONUTF8": "1"}
        assert "沒有 kernel 在執行" in complaint(pipe("http://127.0.0.1:9", "debug", said="hi", **env), 1)


def talk(kernel: Kernel, home: Path, *arguments: str, columns: int = 80, rows: int = 24, **env: str) -> Terminal:
    argv = [*CHAT, *arguments, "--kernel_url", kernel.url]
    whole = environment(KUWA_HOME=str(home), LC_ALL="C.UTF-8") | env
    return Terminal(argv, whole, columns=columns, rows=rows)


class TestAtATerminal:
    def test_a_conversation_goes_on_with_what_was_said(self, kernel: Kernel, tmp_path: Path) -> None:
        with talk(kernel, tmp_path, "talker", columns=200) as terminal:
            terminal.see(PROMPT)
            terminal.say("hello")
            terminal.see("you said: hello")
            terminal.see(PROMPT)
            terminal.say("messages")
            shown = terminal.see(PROMPT)
            assert '[{"role": "user", "content": "hello"}, {"role": "assistant", "content": "you said: hello"}' in shown
            terminal.press(CTRL_D)
            assert terminal.wait() == 0

    def test_ctrl_c_stops_the_answer_frees_the_slot_and_keeps_what_came(self, kernel: Kernel, tmp_path: Path) -> None:
        with talk(kernel, tmp_path, "talker", columns=200) as terminal:
            terminal.see(PROMPT)
            terminal.say("slow")
            terminal.see("word3 ")
            assert kernel.running("talker") == 1
            begun = time.monotonic()
            terminal.press(CTRL_C)
            until(lambda: kernel.idle("talker"), "the slot was free")
            took_s = time.monotonic() - begun
            sys.stdout.write(f"the slot was free {took_s * 1000:.0f} ms after Ctrl-C\n")
            assert took_s <= SLOT_FREE_S
            terminal.see("Stopped.")
            terminal.say("messages")
            assert re.search(r'"assistant", "content": "word0 word1 word2 word3 ', terminal.see('"messages"}'))
            terminal.say("/quit")
            assert terminal.wait() == 0

    def test_ctrl_c_at_the_prompt_ends_nothing(self, kernel: Kernel, tmp_path: Path) -> None:
        with talk(kernel, tmp_path, "debug") as terminal:
            terminal.see(PROMPT)
            terminal.press("never sent")
            terminal.see("never sent")
            terminal.press(CTRL_C)
            terminal.see("type /quit to end")
            terminal.say("hello there")
            assert "never sent" not in terminal.see("tokens")

    @pytest.mark.parametrize(
        "keys",
        ["one\\\rtwo\r", '"""one\rtwo"""\r', '"""\rone\rtwo\r"""\r', "\x1b[200~one\ntwo\x1b[201~\r"],
        ids=["backslash", "quotes", "quotes alone", "pasted"],
    )
    def test_several_lines_are_one_question(self, kernel: Kernel, tmp_path: Path, keys: str) -> None:
        with talk(kernel, tmp_path, "talker") as terminal:
            terminal.see(PROMPT)
            terminal.press(keys)
            terminal.see("you said: one\ntwo")

    def test_markdown_is_rendered_and_nothing_of_the_text_is_lost(self, kernel: Kernel, tmp_path: Path) -> None:
        with talk(kernel, tmp_path, "talker", NO_COLOR="") as terminal:
            terminal.see(PROMPT)
            terminal.say("markdown")
            terminal.see(" s\n" + PROMPT)
            shown = terminal.text
            assert "**bold**" not in shown.rpartition("Title")[2]
            assert "bold words, a <tag> and a link (https://kuwa.example/page).\nsecond line" in shown
            assert re.search(r"a +b\b.*1 +2\b", shown, re.DOTALL)
            assert 'print("one line that is rather long, and is to be copied whole: 0123456789 0123456789")' in shown
            assert "2 second" in shown
            assert "\x1b[1m" in terminal.raw

    def test_a_model_cannot_command_the_terminal(self, kernel: Kernel, tmp_path: Path) -> None:
        with talk(kernel, tmp_path, "talker") as terminal:
            terminal.see(PROMPT)
            terminal.say("escapes")
            terminal.see("end")
            for escape in ("\x1b]0;owned", "\x1b[2J", "\x9b", "\x07"):
                assert escape not in terminal.raw

    def test_an_answer_that_fails_is_told_and_the_next_one_works(self, kernel: Kernel, tmp_path: Path) -> None:
        with talk(kernel, tmp_path, "talker") as terminal:
            terminal.see(PROMPT)
            terminal.say("fail")
            shown = terminal.see("was not added")
            assert "half of it" in shown
            assert "Traceback" not in shown
            terminal.say("messages")
            assert '[{"role": "user", "content": "messages"}]' in terminal.see("tokens")

    def test_what_the_model_thinks_and_a_cut_answer_are_shown(self, kernel: Kernel, tmp_path: Path) -> None:
        with talk(kernel, tmp_path, "talker") as terminal:
            terminal.see(PROMPT)
            terminal.say("think")
            assert re.search(r"pondering\s+the answer", terminal.see(" s\n" + PROMPT))
            terminal.say("cut")
            terminal.see("reached its maximum length")

    def test_the_commands_do_what_help_says(self, kernel: Kernel, tmp_path: Path) -> None:
        saved, message_file = tmp_path / "talk.md", tmp_path / "talk.json"
        with talk(kernel, tmp_path, "talker", columns=200) as terminal:
            terminal.see(PROMPT)
            for said, seen in (
                ("/help", "end a line with \\ to continue"),
                ("/system Be brief.", "The system prompt is set"),
                ("/system", "System prompt: Be brief."),
                ("messages", '[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "messages"}]'),
                ("/clear", "The conversation is cleared"),
                ("/system -", "removed"),
                ("/nonsense", "Unknown command /nonsense"),
                ("/model", "* talker"),
                ("/model debgu", "'debgu' is not served"),
                ("/model debug", "now chatting with debug"),
                (" /etc/hosts", "/etc/hosts"),
                (f"/save {saved}", f"Saved to {saved}"),
                (f"/save {saved}", f"Saved to {saved}"),
                (f"/save {message_file}", f"Saved to {message_file}"),
                (f"/save {tmp_path}", "already exists"),
                (f"/save {tmp_path}/no/such.md", "no/such.md: No such file"),
            ):
                terminal.say(said)
                terminal.see(seen)
                terminal.see(PROMPT)
            terminal.say("/quit")
            assert terminal.wait() == 0
        assert saved.read_text() == "# debug\n\n## user\n\n/etc/hosts\n\n## assistant\n\n/etc/hosts\n"
        turns = json.loads(message_file.read_text())["messages"]
        assert [turn["role"] for turn in turns] == ["user", "assistant"]

    def test_a_file_that_is_there_is_not_overwritten(self, kernel: Kernel, tmp_path: Path) -> None:
        mine = tmp_path / "mine.md"
        mine.write_text("precious")
        with talk(kernel, tmp_path, "debug", columns=200) as terminal:
            terminal.see(PROMPT)
            terminal.say(f"/save {mine}")
            terminal.see("already exists")
        assert mine.read_text() == "precious"

    def test_a_model_is_chosen_from_the_list(self, kernel: Kernel, tmp_path: Path) -> None:
        with talk(kernel, tmp_path) as terminal:
            shown = terminal.see("number or access code: ")
            assert "1  debug\n  2  talker" in shown
            terminal.say("7")
            terminal.see("not in the list")
            terminal.say("2")
            terminal.see("You are chatting with talker.")

    def test_what_was_said_comes_back_by_the_arrow_key_in_a_later_chat(self, kernel: Kernel, tmp_path: Path) -> None:
        with talk(kernel, tmp_path, "debug") as terminal:
            terminal.see(PROMPT)
            terminal.press('"""第一行\r第二行"""\r')
            terminal.see(" s\n" + PROMPT)
            terminal.press(CTRL_D)
            assert terminal.wait() == 0
        assert stat.S_IMODE((tmp_path / "chat_history").stat().st_mode) == 0o600
        with talk(kernel, tmp_path, "talker") as terminal:
            terminal.see(PROMPT)
            terminal.press(UP + "\r")
            terminal.see("you said: 第一行\n第二行")

    def test_chinese_can_be_edited_and_is_broken_as_chinese_is(self, kernel: Kernel, tmp_path: Path) -> None:
        with talk(kernel, tmp_path, "debug", columns=20, LC_ALL="C.UTF-8", LANGUAGE="zh_TW") as terminal:
            terminal.see(PROMPT)
            terminal.press("中文錯字\x7f\x7f正字\r")
            terminal.see("\n中文正字\n")
            terminal.say("一二三四五六七八九十，一二三四五六七八九十。")
            terminal.see("\n一二三四五六七八九\n十，一二三四五六七八\n九十。\n")

    def test_in_taiwan_it_speaks_traditional_chinese(self, kernel: Kernel, tmp_path: Path) -> None:
        with talk(kernel, tmp_path, "debug", LC_ALL="zh_TW.UTF-8", PYTHONUTF8="1") as terminal:
            terminal.see("正在與 debug 對話。")
            terminal.say("/help")
            terminal.see("向上鍵可以取回")

    def test_a_kernel_that_is_not_there_is_said_before_anything_is_asked(self, tmp_path: Path) -> None:
        argv = [*CHAT, "debug", "--kernel_url", "http://127.0.0.1:9"]
        with Terminal(argv, environment(KUWA_HOME=str(tmp_path))) as terminal:
            assert terminal.wait() == 1
            assert "No kernel answers" in terminal.text
