"""Tests of the shim."""
