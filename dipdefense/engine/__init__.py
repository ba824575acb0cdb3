"""Fits many networks at once, and fast.

No module outside depends on how, and no change here may change a result.
"""
