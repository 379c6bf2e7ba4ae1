"""Tests of the core, without sockets or a reactor."""
