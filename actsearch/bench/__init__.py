"""What a search costs: contestants, workloads, interleaved timing, memory, growth, whole searches, and the report."""
