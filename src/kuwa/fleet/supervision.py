"""Decides when each program of `kuwa up` is started, started again, given up and ended. A state machine without
I/O: `kuwa.fleet.up` tells it what happened and when (`now`, monotonic seconds), does the actions that `step`
returns, and shows the news it leaves.

Order of start: a program waits for those it needs. Order of end: executors and tasks first, the kernel last, so
that answers under way arrive. A program that dies is started again after a pause that doubles; one that dies
quickly `MAX_QUICK_DEATHS` times in a row, or says that trying again is no use, is given up. Without its kernel the
whole fleet ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from kuwa.fleet.programs import Program

MAX_QUICK_DEATHS = 5
QUICK_DEATH_S = 30.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
END_GRACE_S = 10.0
# After this long the table is shown even though something still loads.
PATIENCE_S = 20.0
# Exit codes that say: wrong usage, not built yet. Started again, the program would say the same.
HOPELESS_EXITS = frozenset({2, 3})
# The executor could not set up its model. Where it never could, the model or its options are wrong.
SETUP_FAILED_EXIT = 4

Phase = Literal["waiting", "starting", "ready", "done", "pausing", "given up", "ending", "ended"]


@dataclass(frozen=True, slots=True)
class Start:
    program: Program


@dataclass(frozen=True, slots=True)
class Terminate:
    """Ask the program to end; it finishes what it has begun."""

    program: Program


@dataclass(frozen=True, slots=True)
class Kill:
    program: Program


Action = Start | Terminate | Kill


@dataclass(frozen=True, slots=True)
class Ready:
    program: Program
    took_s: float


@dataclass(frozen=True, slots=True)
class Died:
    """`code` is the exit status, negative for a signal. `again_in_s` is None where it was given up. `again`: it
    has died quickly before, so this is likely the same story."""

    program: Program
    code: int
    again_in_s: float | None
    again: bool = False


@dataclass(frozen=True, slots=True)
class Abandoned:
    """Never started, because what it needs (`missing`) was given up."""

    program: Program
    missing: str


@dataclass(frozen=True, slots=True)
class Settled:
    """Time to show what is served: everything is ready or given up, or patience is over."""


News = Ready | Died | Abandoned | Settled


@dataclass(slots=True)
class _Course:
    """Where one program stands. `until` ends the phase `pausing` (a start) or `ending` (by force)."""

    program: Program
    phase: Phase = "waiting"
    started_at: float = 0.0
    until: float = 0.0
    was_ready: bool = False
    quick_deaths: int = 0

    @property
    def runs(self) -> bool:
        return self.phase in ("starting", "ready", "ending")

    @property
    def pending(self) -> bool:
        return self.phase in ("waiting", "starting", "pausing")


class Supervision:
    """The fleet's state. Every method that takes `now` may be called with the same `now` again."""

    def __init__(self, programs: Iterable[Program], now: float) -> None:
        self._courses = {program.name: _Course(program) for program in programs}
        self._news: list[News] = []
        self._settle_at = now + PATIENCE_S
        self._settled = False
        self._stopping = False
        self._failed = False

    @property
    def finished(self) -> bool:
        """Whether nothing runs and nothing will."""
        return self._stopping and not any(course.runs for course in self._courses.values())

    @property
    def failed(self) -> bool:
        """Whether the fleet ended by itself, for want of a kernel."""
        return self._failed

    @property
    def stopping(self) -> bool:
        return self._stopping

    def phase(self, name: str) -> Phase:
        return self._courses[name].phase

    def starting(self) -> list[Program]:
        """The programs whose readiness is to be looked for."""
        return [course.program for course in self._courses.values() if course.phase == "starting"]

    def pending(self) -> list[Program]:
        return [course.program for course in self._courses.values() if course.pending]

    def next_step_at(self) -> float | None:
        """When `step` has something to do though nothing happens, or None."""
        times = [course.until for course in self._courses.values() if course.phase in ("pausing", "ending")]
        if not self._settled and not self._stopping:
            times.append(self._settle_at)
        return min(times, default=None)

    def take_news(self) -> list[News]:
        news, self._news = self._news, []
        return news

    # What happened

    def ready(self, name: str, now: float, since_s: float = 0.0) -> None:
        """The program is ready, and has been for `since_s`. What was ready before this one started is its dead
        predecessor, whose lease has not run out yet."""
        course = self._courses[name]
        if course.phase == "starting" and now - since_s >= course.started_at:
            course.phase, course.was_ready = "ready", True
            self._news.append(Ready(course.program, now - course.started_at))

    def exited(self, name: str, code: int, now: float) -> None:
        course = self._courses[name]
        if self._stopping:
            course.phase = "ended"
        elif course.program.kind == "task" and code == 0:
            course.phase = "done"
        else:
            self._died(course, code, now)

    def stop(self, now: float) -> None:
        """End everything in order; asked a second time, end it at once by force."""
        if self._stopping:
            for course in self._courses.values():
                if course.runs:
                    course.phase, course.until = "ending", now
        self._stopping = True

    # What is to be done

    def step(self, now: float) -> list[Action]:
        if self._stopping:
            return self._end(now)
        actions = self._start(now)
        if self._stopping:
            return actions + self._end(now)
        if not self._settled and (now >= self._settle_at or not self.pending()):
            self._settled = True
            self._news.append(Settled())
        return actions

    def _died(self, course: _Course, code: int, now: float) -> None:
        quick = now - course.started_at < QUICK_DEATH_S
        course.quick_deaths = course.quick_deaths + 1 if quick else 1
        # A kernel that never came up will not: its port is taken, or its options are wrong.
        stillborn = course.program.kind != "executor" and not course.was_ready
        hopeless = code in HOPELESS_EXITS or (code == SETUP_FAILED_EXIT and not course.was_ready)
        if stillborn or hopeless or course.quick_deaths >= MAX_QUICK_DEATHS:
            course.phase = "given up"
            self._news.append(Died(course.program, code, None))
            return
        pause_s = min(FIRST_PAUSE_S * 2 ** (course.quick_deaths - 1), LONGEST_PAUSE_S)
        course.phase, course.until = "pausing", now + pause_s
        self._news.append(Died(course.program, code, pause_s, again=course.quick_deaths > 1))

    def _start(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for course in self._courses.values():
            if course.program.kind == "kernel" and course.phase == "given up":
                self._failed = self._stopping = True
                return []
            if course.phase == "waiting":
                missing = next((n for n in course.program.needs if self.phase(n) == "given up"), None)
                if missing is not None:
                    course.phase = "given up"
                    self._news.append(Abandoned(course.program, missing))
                    continue
            if self._may_start(course, now):
                course.phase, course.started_at = "starting", now
                actions.append(Start(course.program))
        return actions

    def _may_start(self, course: _Course, now: float) -> bool:
        if course.phase == "pausing":
            return now >= course.until
        return course.phase == "waiting" and all(self.phase(n) in ("ready", "done") for n in course.program.needs)

    def _end(self, now: float) -> list[Action]:
        actions: list[Action] = []
        others_run = any(course.runs for course in self._courses.values() if course.program.kind != "kernel")
        for course in self._courses.values():
            if not course.runs:
                course.phase = "ended"
            elif course.phase == "ending":
                if now >= course.until:
                    course.until = now + END_GRACE_S
                    actions.append(Kill(course.program))
            elif course.program.kind != "kernel" or not others_run:
                course.phase, course.until = "ending", now + END_GRACE_S
                actions.append(Terminate(course.program))
        return actions
