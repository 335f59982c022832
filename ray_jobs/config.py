"""What a verb needs of configs: load them, save them, and the command line around them."""

from ray_jobs.settings.command import run_verb
from ray_jobs.settings.loading import ConfigError, load_config, save_config, to_yaml

__all__ = ["ConfigError", "load_config", "run_verb", "save_config", "to_yaml"]
