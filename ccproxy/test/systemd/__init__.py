"""Tests of the installed units beside a real systemd."""
