"""Several worker processes for one Check server: each with its own address, journal and writer id.

Worker 0 has the address and the data directory that were configured; worker n listens n ports (or a
suffix) further, and keeps its data in ``DATA_DIR/worker-n``. Envoy holds few connections to a
server, so the addresses are listed as endpoints of its cluster.
"""

import os
import signal
import subprocess
import sys
import time

import structlog

from authz.config import Config
from authz.errors import AuthzError, UsageError

NUMBER = "AUTHZ_EXT_AUTHZ__WORKER"
_RESTART_SECONDS = 1.0  # before a worker that ended is started again
_LOOK_SECONDS = 0.1
_PORTS = 65_535

logger = structlog.get_logger()


def of_worker(config: Config, number: int) -> Config:
    """The configuration of worker `number`. Raises `UsageError` if there is no such port."""
    if number == 0:
        return config
    options = config.ext_authz
    keys = {
        "key": config.privacy.key or config.data_dir / "privacy.key",
        "sealing_key": config.privacy.sealing_key or config.data_dir / "sealing.key",
    }
    return config.model_copy(
        update={
            "data_dir": config.data_dir / f"worker-{number}",
            "privacy": config.privacy.model_copy(update=keys),
            "ext_authz": options.model_copy(
                update={
                    "listen": _further(options.listen, number),
                    "metrics": options.metrics and _further(options.metrics, number),
                }
            ),
        }
    )


def left_over(config: Config) -> list[int]:
    """Workers there once were and are no more, by number: their journals may hold records."""
    directories = config.data_dir.glob("worker-*")
    numbers = [int(path.name[7:]) for path in directories if path.name[7:].isdigit()]
    return sorted(number for number in numbers if number >= config.ext_authz.workers)


def _further(address: str, number: int) -> str:
    if address.startswith("unix://"):
        return f"{address}.{number}"
    host, _, port = address.rpartition(":")
    if int(port) + number > _PORTS:
        raise UsageError(f"ext_authz.workers: there is no port {int(port) + number} for {address}")
    return f"{host}:{int(port) + number}"


class EndedError(AuthzError):
    """A worker ended for a reason that a new start would meet again."""

    def __init__(self, code: int) -> None:
        super().__init__("a worker cannot start; its own message says why")
        self.exit_code = code


def supervise(config: Config) -> None:
    """Run the workers until SIGTERM; one that dies is started again. Raises `EndedError`."""
    count = config.ext_authz.workers
    for number in range(count):
        of_worker(config, number)  # all addresses exist
    stopping: list[int] = []  # before there are workers, which a stop would else leave behind
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda signum, _: stopping.append(signum))
    running = {number: _start(number) for number in range(count)}
    logger.info("workers started", count=count)
    code = 0
    while not stopping and not code:
        time.sleep(_LOOK_SECONDS)
        for number, process in running.items():
            ended = process.poll()
            if ended is None:
                continue
            if ended == UsageError.exit_code:
                code = ended
                break
            logger.error("a worker ended; it is started again", worker=number, status=ended)
            time.sleep(_RESTART_SECONDS)
            running[number] = _start(number)
    for process in running.values():
        process.terminate()
    for process in running.values():
        process.wait()
    if code:
        raise EndedError(code)


def _start(number: int) -> "subprocess.Popen[bytes]":
    # Its own process group: a Ctrl-C reaches it through us, and only once.
    return subprocess.Popen(
        [sys.executable, "-m", "authz", *sys.argv[1:]],
        env={**os.environ, NUMBER: str(number)},
        start_new_session=True,
    )
