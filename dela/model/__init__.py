"""What every network shares: task, classes, input columns; the class names of public datasets."""
