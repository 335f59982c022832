"""The parts of ``palate serve``: config, models, generator, HTTP interface, start and stop."""
