"""The parts of ``ray_jobs.config``: YAML, overrides, errors, help and the command line that every verb shares."""
