"""The parts of `palate evaluate`: the job, its workers, what it leaves, and checking scorers."""
