"""The validator as a process beside a training without Ray: ``python -m ray_jobs.validation RUN PARENT``."""

import logging
import os
import sys
from pathlib import Path

from ray_jobs.validation.validator import Validator

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    os.nice(10)
    run_dir, parent = Path(sys.argv[1]), int(sys.argv[2])
    Validator(run_dir, wanted=lambda: os.getppid() == parent).run()
