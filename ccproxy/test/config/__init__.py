"""Tests of settings, options and the configuration file."""
