"""Adaptive attacks on a defence, and the accuracy under them.

``evaluate`` is for a defence of your own, ``script`` for the library's. ``levels`` says how hard is attacked, ``plan``
what it costs, ``conditions`` who attacks what, ``judging`` how an attacked image is judged, ``probes`` and ``sanity``
whether the outcome can be believed; ``report`` prints it.
"""
