"""Configuration: settings, the options and the file that set them, and the historic flags."""
