"""The data sets: one file each, giving a `datasets.DatasetDict`; run one by itself to see it."""
