"""The executor's side of its registration: a thread that registers, renews and unregisters.

`run` starts it. It runs in a thread and on the standard library's blocking HTTP client, so that neither a blocked
model nor a blocked event loop can starve it. It heals by itself when the kernel goes away and comes back. A kernel
of the old wire answers in plain words; with one of those the executor lives by the old rules: registered once
under each access code, until it unregisters.
"""

from __future__ import annotations

import http.client
import logging
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from kuwa.executor.arguments import Settings
from kuwa.wire.form import encode_form
from kuwa.wire.json import BadJson
from kuwa.wire.lease import RENEW_S, Lease, Registration, decode_lease, encode
from kuwa.wire.openai import decode_whole

TIMEOUT_S = 5.0
RETRY_FIRST_S = 0.25
RETRY_MOST_S = 1.0
REMIND_S = 30.0
GOODBYE_TIMEOUT_S = 2.0

log = logging.getLogger("kuwa.executor")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a kernel's answer to a registration means. `text` is for people, where it is not `leased`."""

    kind: Literal["leased", "old", "failed", "refused", "away"]
    text: str = ""
    lease: Lease | None = None


def judge(status: int, body: bytes, settings: Settings) -> Verdict:
    """What the kernel's answer means."""
    where = settings.kernel_url
    word = body[:200].decode("utf-8", "replace").strip()
    if status == 200:
        if lease := decode_lease(body):
            return Verdict("leased", lease=lease)
        if word == "Success":
            return Verdict("old")
        if word == "Failed":
            return Verdict("failed", f"the kernel at {where} refuses this executor: it says Failed")
        return Verdict("refused", f"what answers at {where} is no Kuwa kernel; check --kernel_url")
    if status in (404, 405, 501):
        return Verdict(
            "refused",
            f"the kernel at {where} has no worker API {settings.version}, which --version asks for "
            f"(it answered {status}); leave --version out for v1.0, or check --kernel_url",
        )
    if status >= 500 or status in (408, 429):
        return Verdict("away", f"the kernel at {where} answered {status}")
    return Verdict("refused", f"the kernel at {where} refuses this executor: {_message(body) or word or status}")


def _message(body: bytes) -> str:
    """The message of an OpenAI-shaped error, or nothing."""
    try:
        error = decode_whole(body).error
    except BadJson:
        return ""
    return error.message if error is not None else ""


class LeaseLoop:
    """Keeps the executor registered while the process lives.

    `describe` gives the registration as it is now, and is called from the thread. `heard` is called from the thread
    with each registration that a kernel of ours has taken. `refused` is called from the thread, once, with the
    reason, where the kernel does not want this executor at all.
    """

    def __init__(
        self,
        settings: Settings,
        endpoint: str,
        describe: Callable[[], Registration],
        heard: Callable[[Registration], None],
        refused: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._endpoint = endpoint
        self._describe = describe
        self._heard = heard
        self._refused = refused
        self._wake = threading.Event()
        self._told = threading.Event()
        self._stop = threading.Event()
        self._kernel = _KernelCalls(settings)
        self._is_old = False
        self._old_codes: list[str] = []
        self._registered: list[str] = []
        self._thread = threading.Thread(target=self._run, name="kuwa-lease", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def announce(self) -> None:
        """Something changed that the kernel shall hear of at once; `wait_told` waits until it has."""
        self._told.clear()
        self._wake.set()

    def wait_told(self, timeout_s: float) -> bool:
        """Whether the kernel has heard of the last `announce` within `timeout_s`. Blocks."""
        return self._told.wait(timeout_s)

    def close(self) -> None:
        """Unregister and end the thread. Blocks, for `GOODBYE_TIMEOUT_S` or the call under way."""
        self._stop.set()
        self._wake.set()
        self._thread.join(TIMEOUT_S + GOODBYE_TIMEOUT_S)

    def leave_old_kernel(self) -> None:
        """A kernel of the old wire knows no draining: unregister there before the last requests end. Blocks."""
        if self._old_codes:
            self._goodbye()

    def _run(self) -> None:
        # An executor without an access code of its own learns it in setup(), and is nobody before.
        retry_s, away_since, silent_s = RETRY_FIRST_S, "", 0.0
        while not self._stop.is_set():
            self._wake.clear()
            verdict = self._register()
            if verdict.kind == "refused" or verdict.kind == "failed":
                self._refused(verdict.text)
                return
            if verdict.kind == "away":
                if not away_since or silent_s >= REMIND_S:
                    log.warning("%s; trying again until it does", verdict.text)
                    silent_s = 0.0
                away_since = verdict.text
                pause_s, retry_s = retry_s, min(retry_s * 2, RETRY_MOST_S)
                silent_s += pause_s
            else:
                if away_since:
                    log.info("the kernel at %s is back", self._settings.kernel_url)
                retry_s, away_since, silent_s = RETRY_FIRST_S, "", 0.0
                pause_s = verdict.lease.renew_s if verdict.lease is not None else RENEW_S
                self._told.set()
            self._wake.wait(pause_s)
        self._goodbye()

    def _register(self) -> Verdict:
        """One registration or renewal."""
        registration = self._describe()
        codes = registration.access_codes
        if not codes or self._old_codes or (self._is_old and registration.state == "starting"):
            return Verdict("old")
        fields = {"name": codes[0], "endpoint": self._endpoint, "kuwa": encode(registration).decode()}
        verdict = self._kernel.call("register", fields)
        if verdict.kind in ("old", "failed"):
            self._is_old = True
            if registration.state == "starting":
                # A kernel of the old wire knows no such state and would send requests at once.
                return self._old_call("unregister", codes[0])
            return self._register_old(codes, verdict)
        if verdict.kind == "leased" and not self._registered:
            log.info("registered with the kernel at %s as %s", self._settings.kernel_url, ", ".join(codes))
        if verdict.kind == "leased":
            self._registered = codes[:1]
            self._heard(registration)
        return verdict

    def _register_old(self, codes: list[str], first: Verdict) -> Verdict:
        """An old kernel takes one code per call, and refuses the return of an executor that crashed."""
        for index, code in enumerate(codes):
            verdict = first if index == 0 else self._old_call("register", code)
            if verdict.kind == "failed":
                self._old_call("unregister", code)
                verdict = self._old_call("register", code)
            if verdict.kind != "old":
                return verdict
            self._registered.append(code)
        self._old_codes = list(codes)
        log.info("registered with the v1.0 kernel at %s as %s", self._settings.kernel_url, ", ".join(codes))
        return Verdict("old")

    def _old_call(self, what: str, code: str) -> Verdict:
        return self._kernel.call(what, {"name": code, "endpoint": self._endpoint})

    def _goodbye(self) -> None:
        self._kernel.timeout_s = GOODBYE_TIMEOUT_S
        if self._registered and not self._old_codes and self._describe().ended:
            self._register()
        codes, self._registered = self._registered, []
        for code in codes:
            verdict = self._old_call("unregister", code)
            if verdict.kind == "away":
                log.warning("could not unregister: %s", verdict.text)
                return
        if codes:
            log.info("unregistered from the kernel")


class _KernelCalls:
    """The two calls of the worker API. Blocking."""

    def __init__(self, settings: Settings) -> None:
        self.timeout_s = TIMEOUT_S
        self._settings = settings
        parts = urlsplit(settings.kernel_url)
        self._host, self._port, self._secure = parts.hostname or "", parts.port, parts.scheme == "https"
        self._prefix = f"{parts.path.rstrip('/')}/{settings.version}/worker/"
        self._tls = ssl.create_default_context(cafile=settings.ca_file) if self._secure else None

    def call(self, what: str, fields: dict[str, str]) -> Verdict:
        connection = self._connect()
        try:
            headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
            connection.request("POST", self._prefix + what, encode_form(fields), headers)
            response = connection.getresponse()
            return judge(response.status, response.read(65536), self._settings)
        except ssl.SSLCertVerificationError as error:
            return Verdict(
                "refused",
                f"the certificate of the kernel at {self._settings.kernel_url} is not trusted "
                f"({error.verify_message}); name its authority with --ca_file",
            )
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return Verdict("away", f"the kernel at {self._settings.kernel_url} does not answer ({reason})")
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        if self._tls is not None:
            return http.client.HTTPSConnection(self._host, self._port, timeout=self.timeout_s, context=self._tls)
        return http.client.HTTPConnection(self._host, self._port, timeout=self.timeout_s)
