"""The paper's results, an item a module, on :mod:`dipdefense.evaluation`.

``published`` has its printed numbers and ``claims`` decides its sentences. ``tables`` measures Tables 1 and 2;
``report`` and ``plots`` show them, ``labels`` has the titles, and ``reproduction`` goes from the command line to the
report. ``figure1`` does the same for Figure 1, with ``figure1_setting``, ``figure1_claims``, ``figure1_report`` and
``figure1_plots``.
"""
