"""What people look at: figures, tables, progress and TensorBoard logs."""
