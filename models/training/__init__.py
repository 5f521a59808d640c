"""The training side: the only code that imports torch. Never imported by the scorer."""
