"""pytest plugin: tests that ask for ``emulated_cuda`` run in a process of their own.

The dynamic linker reads LD_LIBRARY_PATH when a process starts, and a driver once loaded stays. So
the process that the user started only collects such tests; each is run by a second pytest process
(one per module, started at its first test) whose CUDA driver is the emulated one, and the reports
come back over a pipe. Nothing else runs there, and no CUDA driver is ever loaded here.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from cuda_emulator import build
from cuda_emulator.control import EmulatedCuda

PIPES = "EMULATED_CUDA_PIPES"
FIXTURE = "emulated_cuda"


@pytest.fixture(scope="session")
def _emulated_driver() -> EmulatedCuda:
    reason = build.missing()
    if reason:
        pytest.skip(reason)
    return EmulatedCuda()


@pytest.fixture
def emulated_cuda(_emulated_driver: EmulatedCuda) -> Iterator[EmulatedCuda]:
    """The emulated CUDA driver, as this process's only one.

    After the test every setting is as at first, and faults it did not expect (see
    :meth:`EmulatedCuda.expect_fault`) fail it.
    """
    _emulated_driver.begin()
    yield _emulated_driver
    faults = _emulated_driver.end()
    if faults:
        pytest.fail("faults on the emulated CUDA driver:\n" + "\n".join(faults), pytrace=False)


class Child:
    """A pytest process on the emulated driver that runs the tests of one module as it is asked."""

    def __init__(self, config: pytest.Config, module: Path) -> None:
        self.config, self.module = config, module
        requests, self._requests = os.pipe()
        answers_in, answers = os.pipe()
        # The child's own output; what a test prints is captured there and comes with its report.
        self.output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        environment = build.environment() | {
            PIPES: f"{requests},{answers}",
            "EMULATED_CUDA_LOG": str(self.output.fileno()),
        }
        for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
            environment.pop(name, None)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist"]
        if config.inipath is not None:
            command += ["-c", str(config.inipath)]
        self.process = subprocess.Popen(
            [*command, f"--rootdir={config.rootpath}", str(module)],
            cwd=config.rootpath,
            env=environment,
            pass_fds=(requests, answers, self.output.fileno()),
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )
        os.close(requests)
        os.close(answers)
        self._answers = os.fdopen(answers_in)

    def run(self, item: pytest.Item, following: str | None) -> list[Any]:
        """The reports of one test.

        Raises:
            RuntimeError: the process ended; the message holds the end of its output.
        """
        request = json.dumps([item.nodeid, following]) + "\n"
        with contextlib.suppress(BrokenPipeError):
            os.write(self._requests, request.encode())
        reports = []
        for line in self._answers:
            answer = json.loads(line)
            if answer is None:
                return reports
            hook = self.config.hook
            report = hook.pytest_report_from_serializable(config=self.config, data=answer)
            # JSON has no tuples, and pytest wants these to be some.
            report.location = tuple(report.location)
            report.user_properties = [tuple(pair) for pair in report.user_properties]
            if isinstance(report.longrepr, list):
                report.longrepr = tuple(report.longrepr)
            reports.append(report)
        status = self.process.wait()
        self.output.seek(0)
        text = self.output.read().decode(errors="replace")
        raise RuntimeError(
            f"the process with the emulated CUDA driver ended with status {status}\n{text[-6000:]}"
        )

    def close(self) -> None:
        for end in (lambda: os.close(self._requests), self._answers.close, self.output.close):
            with contextlib.suppress(OSError):
                end()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Parent:
    """Hands the tests on the emulated driver to child processes."""

    def __init__(self) -> None:
        self.child: Child | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> bool | None:
        if FIXTURE not in getattr(item, "fixturenames", ()) or build.missing():
            return None
        following = None
        if nextitem is not None and nextitem.path == item.path:
            following = nextitem.nodeid
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports(item, following):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        if following is None:
            self.close()
        # The fixtures that tests of this process hold are torn down on time.
        item.session._setupstate.teardown_exact(nextitem)
        return True

    def _reports(self, item: pytest.Item, following: str | None) -> list[Any]:
        try:
            if self.child is None or self.child.module != item.path:
                self.close()
                self.child = Child(item.config, item.path)
            return self.child.run(item, following)
        except (RuntimeError, OSError) as error:
            self.close()
            return [
                pytest.TestReport(item.nodeid, item.location, {}, outcome, text, when, duration=0)
                for when, outcome, text in (
                    ("setup", "passed", None),
                    ("call", "failed", str(error)),
                    ("teardown", "passed", None),
                )
            ]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        self.close()

    def close(self) -> None:
        if self.child is not None:
            self.child.close()
            self.child = None


class Worker:
    """The child's side: runs the tests it is asked for, in that order."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        requests, answers = map(int, os.environ[PIPES].split(","))
        self.requests, self.answers = os.fdopen(requests), os.fdopen(answers, "w")

    def _answer(self, value: object) -> None:
        self.answers.write(json.dumps(value) + "\n")
        self.answers.flush()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        for line in self.requests:
            nodeid, following = json.loads(line)
            item, after = items[nodeid], items.get(following)
            self.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            self._answer(None)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self._answer(data)


def pytest_configure(config: pytest.Config) -> None:
    role = Worker(config) if PIPES in os.environ else Parent()
    config.pluginmanager.register(role, "emulated_cuda_process")
