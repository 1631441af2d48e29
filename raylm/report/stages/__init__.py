"""One module a stage: `build(store, related)` makes its page."""
