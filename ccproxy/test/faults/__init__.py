"""Tests of the daemon when peers break in the middle of a conversation."""
