"""
The tests of ccproxy.
"""
