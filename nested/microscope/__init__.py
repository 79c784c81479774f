"""The level microscope: which level forgot, which one learned, and when."""
