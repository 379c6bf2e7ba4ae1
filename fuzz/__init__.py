"""
Fuzz targets: functions that take any bytes and raise nothing, each for one place where bytes of a
peer are read.

L{fuzz.targets} lists them. C{make fuzz} runs them guided by coverage, and C{make test} runs them
over C{fuzz/corpus}, without anything but the project's own dependencies.
"""
