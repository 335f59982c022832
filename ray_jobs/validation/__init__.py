"""Judging the checkpoints of a run while it trains, off the workers that train."""
