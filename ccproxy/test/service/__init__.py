"""Tests of the daemon's services and command lines."""
