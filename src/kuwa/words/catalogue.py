"""The shape of the catalogue: a field for each text; the names in braces are filled in by `str.format`."""

from __future__ import annotations

from dataclasses import dataclass

from kuwa.home import Language


@dataclass(frozen=True, slots=True, kw_only=True)
class Up:
    """`kuwa up`."""

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
    endpoint: str
    page: str
    api: str
    logs: str
    try_it: str
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """`kuwa chat`."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Ps:
    """`kuwa ps`."""

    where: str
    slots: str
    waits: str
    load: str
    since: str
    tokens_per_s: str
    waiting_there: str
    nothing_runs: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Doctor:
    """`kuwa doctor`: findings, and the fix of each (`_do`)."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The kernel's page at `/`; the texts are plain and become HTML where they are used."""

    tagline: str
    version: str
    served: str
    executors: str
    context: str
    tokens: str
    none: str
    none_ready: str
    ask: str
    ask_by_curl: str
    ask_in_terminal: str
    ask_by_library: str
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """All texts in one language. `states` has the states of replicas, and the phases of the programs of `kuwa up`."""

    language: Language
    access_code: str
    executor: str
    state: str
    states: dict[str, str]
    hello: str
    no_kernel: str
    up: Up
    chat: Chat
    ps: Ps
    doctor: Doctor
    page: Page
