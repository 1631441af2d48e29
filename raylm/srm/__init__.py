"""A structural reward model: branches that score one dimension each, and a fusion that says why."""
