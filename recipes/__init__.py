"""What is shipped with the code: recipes (YAML, one for each experiment), small data sets, and ready bundles."""
