"""What a trained model has learnt, looked at from inside: numpy in, numbers and figures out; for notebooks."""
