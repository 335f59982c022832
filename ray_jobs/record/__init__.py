"""The record of a run: what it leaves, how people read it, and its way to MLflow."""
