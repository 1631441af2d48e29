"""Dense retrieval: encoders, losses, negatives, indexes, evaluation."""
