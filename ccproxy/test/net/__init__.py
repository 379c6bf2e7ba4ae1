"""Tests of transports, Protocols and the client library."""
