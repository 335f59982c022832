"""The ``palate`` command: finds the module of a verb and hands it the rest of the line."""

import importlib
import inspect
import sys
from importlib.metadata import version

from ray_jobs.settings.command import complain, interrupted, show
from ray_jobs.settings.problems import did_you_mean

VERBS = {
    "import": "turn a public preference set, or any files with pairs, into shards to train on",
    "prepare": "check preference data and cache its latents",
    "caption": "give each image of a pair its own caption",
    "label": "let a scorer label preference pairs, filter them, or score them",
    "pairs": "make preference pairs: ranked samples of a model, images made worse, winners of other captions",
    "patches": "write patch quality maps for PatchDPO, by a frozen vision model",
    "train": "teach a model what people prefer",
    "status": "how a training run stands, also as a page",
    "tune": "search for the best settings of a training job",
    "evaluate": "compare models: images, scores, statistics, a report",
    "dreambench": "draw the subjects of DreamBench with an IP-Adapter, and score them",
    "serve": "generate images over HTTP, with a page to compare models",
    "demo": "see all of it on this machine in minutes, with the model that ships with Palate",
}
"""Every verb is the module ``ray_jobs.<verb>`` with ``main(argv) -> exit code``."""

MODULES = {"import": "import_pairs"}
"""Verbs that are no names of Python modules."""


def usage() -> str:
    """The page that ``palate --help`` prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {summary}" for verb, summary in VERBS.items())
    return (
        "usage: palate VERB [--config FILE] [--dry-run] [section.key=value ...]\n\n"
        f"{verbs}\n\n"
        "  palate VERB --help   what a verb does and its settings\n"
        "  palate --version     the version that is installed"
    )


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns its exit code (2 for an unknown verb, 130 when interrupted)."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("--help", "-h", "help"):
        show(usage())
        return 0 if words else 2
    if words[0] == "--version":
        show(version("palate"))
        return 0
    verb = words[0]
    if verb not in VERBS:
        complain(f"{verb}: there is no such verb{did_you_mean(verb, list(VERBS)) or '; allowed: ' + ', '.join(VERBS)}")
        return 2
    # Under `python -m ray_jobs.<verb>` inspect takes that file for __main__ alone, and finds no help of its settings.
    inspect.modulesbyfile.clear()
    try:
        return importlib.import_module(f"ray_jobs.{MODULES.get(verb, verb)}").main(words[1:])
    except KeyboardInterrupt:
        return interrupted()


if __name__ == "__main__":
    raise SystemExit(main())
