"""pacecore: learning video representations without labels, by pace prediction."""

__version__ = "0"
