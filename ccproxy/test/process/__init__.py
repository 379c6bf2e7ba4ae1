"""Tests of the daemon as a black box: one real process for each test."""
