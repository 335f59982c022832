"""A training on Ray: the job, a worker's view of it, and what surrounds the workers."""
