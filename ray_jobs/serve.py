"""palate serve: offer models over HTTP, with OpenAI's images API and a page that shows them side by side."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from ray_jobs.config import run_verb
from ray_jobs.serving.guard import key_digest
from ray_jobs.serving.models import served_models
from ray_jobs.serving.section import ServeSection


def plan_rows(section: ServeSection) -> list[tuple[str, str]]:
    """What ``--dry-run`` tells beyond the resolved config."""
    models = served_models(section.models, section.runs)
    rows = [(f"model {model.name}", f"{model.source} ({model.kind})") for model in models.values()]
    kept = min(len(models), section.replica.max_models)
    rows += [
        ("generators", f"{section.num_replicas}, each holding {kept} of {len(models)} models at once"),
        ("listens on", url(section) + ("" if section.api_key_env is None else f", key from ${section.api_key_env}")),
        ("full at", f"{section.limits.queue_length} requests"),
    ]
    return rows


def url(section: ServeSection) -> str:
    host = f"[{section.host}]" if ":" in section.host else section.host
    return f"http://{host}:{section.port}"


def api_key_digest(section: ServeSection) -> bytes | None:
    """The digest of the API key that the environment holds, None if the config asks for no key."""
    if section.api_key_env is None:
        return None
    key = os.environ.get(section.api_key_env, "").strip()
    if not key:
        raise ValueError(f"api_key_env: the environment variable {section.api_key_env} is empty or not set")
    return key_digest(key)


@contextmanager
def until_told_to_stop() -> Iterator[Callable[[], None]]:
    """Yields a function that waits for Ctrl-C or SIGTERM; during the block neither ends the process by itself."""
    told = threading.Event()
    before = {number: signal.signal(number, lambda *_: told.set()) for number in (signal.SIGINT, signal.SIGTERM)}

    def wait() -> None:
        # Waiting without a timeout would keep Python from running the signal handler on some platforms.
        while not told.wait(1):
            pass

    try:
        yield wait
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_server(section: ServeSection, console: Console | None = None) -> None:
    """Serve until Ctrl-C or SIGTERM, then stop what was started."""
    console = console or Console()
    models = served_models(section.models, section.runs)
    digest = api_key_digest(section)
    from ray_jobs.serving import server

    with console.status("starting Ray Serve"):
        server.start(section, models, digest)
    # Ray sets its own signal handlers when it starts; ours come after.
    with until_told_to_stop() as wait:
        console.print(f"models  {', '.join(models)}")
        console.print(f"page    {url(section)}/\nAPI     {url(section)}/v1\nready; Ctrl-C stops the server")
        wait()
        console.print("stopping")
        server.stop()


def main(argv: list[str] | None = None) -> int:
    return run_verb(schema=ServeSection, run=run_server, plan=plan_rows, argv=argv, doc=__doc__ or "")


if __name__ == "__main__":
    raise SystemExit(main())
