"""What was computed once for an answer or a record, and the answers themselves."""
