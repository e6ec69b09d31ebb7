"""How fast vecrope and the functions that it replaces are: `python -m bench --help`.

A *workload* is a prompt of a given size (`workloads`), a *provider* is something that computes its
positions (`providers`, `wheels`), a *point* is one provider on one workload (`config`). `runner`
checks each answer, then measures; `table` prints; `plot` draws from the CSV file alone.
"""
