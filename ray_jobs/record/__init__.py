"""The parts of ``ray_jobs.record.tracking``: the files of a run, their delivery, and the MLflow run they go to."""
