"""Tests of VMs: with a program that stands for QEMU, and real ones in C{test_real_}."""
