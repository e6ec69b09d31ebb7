"""How fast vecrope and the functions that it replaces are: `python -m bench --help`.

A *workload* is a prompt of a given size (`workloads`, `mixed`), a *provider* is something that
computes its positions (`providers`, `upstreams`, `lmms`), a *point* is one provider on one workload
(`config`). `runner` checks each answer (`answers`), then measures, if asked to beside busy cores
(`busy`); `table` prints; `plot` draws from the CSV file alone.
"""
