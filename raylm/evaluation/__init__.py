"""Score models on suites of problems, and compare two scores."""
