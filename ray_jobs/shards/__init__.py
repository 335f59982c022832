"""Jobs that make shards from shards: the job, its rows, the work on one shard."""
