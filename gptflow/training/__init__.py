"""Training: from data to an adapter that is better than what it replaces.

`data` reads, checks and splits rows, and needs nothing that the base install lacks, but for
Parquet. `evaluation` holds answers, floors and figures (numpy, scikit-learn); `report` puts a
model's answers beside its floors.
"""
