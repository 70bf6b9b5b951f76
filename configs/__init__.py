"""The published runs, one YAML file each."""
