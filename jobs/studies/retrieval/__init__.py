"""Study of the retriever's losses, negatives and soft targets."""
