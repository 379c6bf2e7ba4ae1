"""Tests of C{ccproxyctl}, as people start it."""
