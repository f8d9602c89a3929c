"""From sources to a dataset: work units, commit records, selection, packing."""
