"""pacecore: video representations without labels by pace prediction (Wang, Jiao, Liu, ECCV 2020)."""

__version__ = "0"
