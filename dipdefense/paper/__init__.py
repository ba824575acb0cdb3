"""The paper's results, an item a module, on :mod:`dipdefense.evaluation`.

``published`` has the printed numbers and the paper's claims. ``tables`` measures Tables 1 and 2, ``claims`` decides
what is claimed of them, ``report`` and ``plots`` show them, ``labels`` has the titles, and ``reproduction`` goes from
the command line to the report. The modules that begin with ``architecture``, ``figure1`` and ``figure3`` do the same
for section 6 and Figures 1 and 3, whose sets of images ``robust_sets`` makes. ``figure2``, ``figure4`` and ``figure5``
are of a single image; ``figures`` has their common parts.
"""
