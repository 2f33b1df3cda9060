"""What is trained, by which rule, at which rate."""
