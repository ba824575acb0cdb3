"""Adaptive attacks on a defence, and the accuracy under them.

``evaluate`` is for a defence of your own, ``script`` for the library's. ``levels`` has the attacks' strength, ``plan``
their cost, ``conditions`` who attacks what, ``judging`` how an attacked image is judged, ``probes`` and ``sanity``
whether the outcome can be believed; ``report`` prints it.
"""
